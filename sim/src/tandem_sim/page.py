"""One HTML page with everything in it: no script, no style sheet and no font from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from tandem_load.svg import Chart, Series, render

from tandem_sim.report import Summary, table

_STYLE = """
body { font-family: sans-serif; max-width: 90rem; margin: 1rem auto; padding: 0 1rem; color: #222; }
pre { overflow-x: auto; background: #f6f6f6; padding: .6rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(32rem, 1fr)); gap: 1rem; }
svg { width: 100%; height: auto; border: 1px solid #eee; }
"""


def html_page(title: str, summaries: Sequence[Summary]) -> str:
    """The page of some runs of the same traffic."""
    charts = "\n".join(render(chart) for chart in _charts(summaries))
    advice = "\n".join(
        f"{_name(s)}: {advice['time_s']:g} s: {advice['desired']}: {advice['reason']}"
        for s in summaries
        for advice in s["advice"]
    )
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n"
        f"<h1>{escape(title)}</h1>\n<pre>{escape(table(summaries))}</pre>\n"
        f'<div class="charts">\n{charts}\n</div>\n'
        f"<h2>What the planner would have advised</h2>\n<pre>{escape(advice) or 'nothing'}</pre>\n"
        "</body></html>\n"
    )


def _charts(summaries: Sequence[Summary]) -> list[Chart]:
    return [
        _percentile_chart("Time to first token", "ttft_s", summaries),
        _percentile_chart("Time between tokens", "itl_s", summaries),
        *_goodput_charts(summaries),
        *(
            Chart(
                title=f"Utilisation over time: {_name(s)}",
                x_title="seconds",
                y_title="% of time in steps",
                series=[
                    Series(
                        name=role,
                        points=[
                            (sample["time_s"], 100 * sample["utilisation"][role]) for sample in s["timeline"]
                        ],
                    )
                    for role in s["utilisation"]
                ],
            )
            for s in summaries
        ),
        Chart(
            title="Requests in the engines",
            x_title="seconds",
            y_title="running and waiting",
            series=[
                Series(
                    name=_name(s),
                    points=[
                        (sample["time_s"], sample["num_running"] + sample["num_waiting"])
                        for sample in s["timeline"]
                    ],
                )
                for s in summaries
            ],
        ),
    ]


def _percentile_chart(title: str, key: str, summaries: Sequence[Summary]) -> Chart:
    return Chart(
        title=title,
        x_title="percentile",
        y_title="milliseconds",
        log_y=True,
        series=[
            Series(
                name=_name(s),
                points=[(number, value * 1e3) for number, value in enumerate(s["curves"][key], start=1)],
            )
            for s in summaries
        ],
    )


def _goodput_charts(summaries: Sequence[Summary]) -> list[Chart]:
    """One, or none when all runs have the same rate: a single rate makes no line."""
    by_policy: dict[str, list[tuple[float, float]]] = {}
    for s in summaries:
        by_policy.setdefault(s["policy"], []).append((s["rate"], s["goodput"]))
    if len({s["rate"] for s in summaries}) < 2:
        return []
    return [
        Chart(
            title="Goodput over rate",
            x_title="requests sent per second",
            y_title="requests per second in target",
            series=[Series(name=policy, points=sorted(points)) for policy, points in by_policy.items()],
        )
    ]


def _name(summary: Summary) -> str:
    return f"{summary['policy']}, load {summary['load']:g}"
