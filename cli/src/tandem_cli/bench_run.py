"""Making load point by point, with a live view, until all are done or Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tandem_load.figures import milliseconds, number
from tandem_load.load_process import LoadProcess
from tandem_load.load_process import Progress as Standing
from tandem_load.load_task import LoadTask
from tandem_load.summary import Summary, load_name, summarise


def run_points(tasks: Sequence[LoadTask], console: Console) -> list[Summary]:
    """Summaries of the points that were measured; after an interrupt the last one is of what there was."""
    points: list[Summary] = []
    with _LiveView(tasks, console) as view:
        for index, task in enumerate(tasks):
            point = _run_point(task, view, index)
            points.append(point)
            view.on_end(index, point)
            if point["was_interrupted"]:
                break
    return points


def _run_point(task: LoadTask, view: _LiveView, index: int) -> Summary:
    process = LoadProcess(task)
    try:
        with _forwarded_interrupt(process):
            return summarise(task, process.wait(lambda standing: view.update(index, standing)))
    finally:
        process.close()


@contextlib.contextmanager
def _forwarded_interrupt(process: LoadProcess) -> Iterator[None]:
    """The first Ctrl-C ends the load and keeps what was measured, the second ends everything."""
    previous = signal.getsignal(signal.SIGINT)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, previous)
        process.interrupt()

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


class _LiveView:
    """A bar for each point; a line for each finished one where there is no terminal."""

    def __init__(self, tasks: Sequence[LoadTask], console: Console) -> None:
        self._tasks = tasks
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[standing]}"),
            console=console,
            disable=not console.is_terminal,
            refresh_per_second=4,
        )
        width = max(len(load_name(task)) for task in tasks)
        self._rows = [
            self._progress.add_task(load_name(task).rjust(width), total=1.0, standing="") for task in tasks
        ]

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, index: int, standing: Standing) -> None:
        task = self._tasks[index]
        if standing.time_s < 0:
            text = "warming up"
        else:
            text = (
                f"{standing.num_done} of {standing.num_sent} answered, {standing.num_in_flight} on their way"
                + (f", {standing.num_failed} failed" if standing.num_failed else "")
                + (f", TTFT p50 {milliseconds(standing.ttft_p50_s)} ms" if standing.ttft_p50_s else "")
            )
        self._progress.update(self._rows[index], completed=_share_done(task, standing), standing=text)

    def on_end(self, index: int, point: Summary) -> None:
        text = (
            f"{number(point['requests_per_s'])} requests/s, {number(point['tokens_per_s'])} tokens/s, "
            f"TTFT p50 {milliseconds(point['ttft_s']['p50'])} ms"
            + (f", {point['num_failed']} failed" if point["num_failed"] else "")
        )
        self._progress.update(self._rows[index], completed=1.0, standing=text)
        if self._progress.disable:
            self._console.print(f"{point['load']}: {text}", highlight=False)


def _share_done(task: LoadTask, standing: Standing) -> float:
    shares = [0.0]
    if task.duration_s is not None:
        shares.append((standing.time_s + task.warmup_s) / (task.duration_s + task.warmup_s))
    if task.max_requests is not None:
        shares.append((standing.num_done + standing.num_failed) / task.max_requests)
    return min(0.99, max(shares))
