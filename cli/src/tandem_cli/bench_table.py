"""The figures of a measurement in the terminal."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from tandem_load import figures
from tandem_load.summary import Summary

_NAME_WIDTH = 22
_COLUMN_WIDTH = 17


def print_figures(report: Summary, console: Console) -> None:
    """Figures, then failures, then what else must be known; points that do not fit side by side come below."""
    points: list[Summary] = report["points"]
    width = console.width if console.is_terminal else 120
    per_table = max(1, (width - _NAME_WIDTH) // _COLUMN_WIDTH)
    for first in range(0, len(points), per_table):
        shown = points[first : first + per_table]
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("", no_wrap=True)
        for point in shown:
            table.add_column(str(point["load"]), justify="right", no_wrap=True)
        for name, cells in figures.rows(shown):
            table.add_row(name, *cells)
        console.print(table)
    failed = figures.failures(points)
    if failed:
        console.print("Failed requests:", style="bold red")
        for load, kind, count, message in failed:
            console.print(
                f"  {load}: {count} × {kind}: {message}", highlight=False, markup=False, soft_wrap=True
            )
    for note in figures.notes(points, report["notes"]):
        console.print(note, style="dim", highlight=False, markup=False)
