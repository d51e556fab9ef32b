"""One HTML page with everything in it: no script, no style sheet, no font and no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from tandem_load.svg import Chart, render

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1.5rem; color: #1c2430;
  background: #fff; }
h1 { font-size: 1.5rem; margin: 0 0 .3rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .7rem; }
p { margin: .4rem 0; max-width: 60rem; } .quiet { color: #5b6573; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .32rem .8rem; text-align: right; border-bottom: 1px solid #e4e8ee; white-space: nowrap; }
th { font-weight: 600; color: #45505f; vertical-align: bottom; } thead th { border-bottom: 2px solid #c9d1dc; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
td.text, th.text { text-align: left; white-space: normal; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1.2rem; max-width: 60rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(30rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; border: 1px solid #e4e8ee; border-radius: 6px; }
pre { overflow-x: auto; background: #f5f7fa; padding: .7rem .9rem; border-radius: 6px; font-size: .85rem; }
@media (max-width: 34rem) { .charts { grid-template-columns: 1fr; } }
@media print { .charts { grid-template-columns: 1fr 1fr; } }
"""


def page(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """A page; `parts` are HTML, as the functions below make it."""
    body = "\n".join(parts)
    return (
        "<!doctype html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="quiet">{escape(subtitle)}</p>\n{body}\n</body></html>\n'
    )


def heading(text: str) -> str:
    """The title of a section."""
    return f"<h2>{escape(text)}</h2>"


def paragraph(text: str) -> str:
    """A sentence or two."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: Sequence[int] = ()) -> str:
    """Figures, right-aligned but for the first column and `text_columns`."""

    def line(tag: str, cells: Sequence[str]) -> str:
        classes = [' class="text"' if column in text_columns else "" for column in range(len(cells))]
        inner = "".join(
            f"<{tag}{kind}>{escape(cell)}</{tag}>" for kind, cell in zip(classes, cells, strict=True)
        )
        return f"<tr>{inner}</tr>"

    lines = "\n".join(line("td", row) for row in rows)
    return (
        f'<div class="wide"><table><thead>{line("th", head)}</thead><tbody>\n{lines}\n</tbody></table></div>'
    )


def definitions(entries: Mapping[str, str]) -> str:
    """Words and what they mean."""
    lines = "".join(
        f"<dt>{escape(word)}</dt><dd>{escape(meaning)}</dd>\n" for word, meaning in entries.items()
    )
    return f"<dl>\n{lines}</dl>"


def charts(drawn: Sequence[Chart]) -> str:
    """Plots side by side, as many as fit."""
    return '<div class="charts">\n' + "\n".join(render(chart) for chart in drawn) + "\n</div>"


def preformatted(text: str) -> str:
    """Text with its line breaks."""
    return f"<pre>{escape(text)}</pre>"
