"""The HTML report of a simulation."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_load import html
from tandem_load.svg import Chart, Series

from tandem_sim.report import COLUMNS, Summary, rows


def html_page(title: str, summaries: Sequence[Summary]) -> str:
    """The page of some runs of the same traffic."""
    advice = "\n".join(
        f"{_name(s)}: {advice['time_s']:g} s: {advice['desired']}: {advice['reason']}"
        for s in summaries
        for advice in s["advice"]
    )
    targets = summaries[0]["targets"]
    parts = [
        html.table(COLUMNS, rows(summaries), text_columns=(len(COLUMNS) - 1,)),
        html.paragraph(
            f"Good: TTFT ≤ {targets['ttft_s'] * 1e3:g} ms and TPOT ≤ {targets['tpot_s'] * 1e3:g} ms. "
            "Goodput: requests per second that meet both, counted over requests sent. Hits: share of the prompts' "
            "tokens found in a cache; local: requests whose decode worker read the prompt itself; busy: share of time "
            "in steps."
        ),
        html.heading("Plots"),
        html.charts(_charts(summaries)),
        html.heading("What the planner would have advised"),
        html.preformatted(advice or "nothing"),
    ]
    number = len(summaries)
    return html.page(title, f"{number} run{'s' * (number > 1)}, seed {summaries[0]['seed']}", parts)


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
