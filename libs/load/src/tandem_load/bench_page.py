"""The HTML report of a measurement."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_load import figures, html
from tandem_load.summary import DEFINITIONS, Summary
from tandem_load.svg import Chart, Series

# What was read together has no gap, which has no place on a logarithmic axis.
_LEAST_SHOWN_S = 1e-5
_SHARES = ("p50", "p90", "p95", "p99")


def bench_page(report: Summary) -> str:
    """The page of a whole report (`Report.content`)."""
    points: list[Summary] = report["points"]
    rows = figures.rows(points, _SHARES, one_row_each=True)
    parts = [
        html.table(["", *(str(point["load"]) for point in points)], [[name, *cells] for name, cells in rows]),
        *(html.paragraph(note) for note in figures.notes(points, report["notes"])),
    ]
    failed = figures.failures(points)
    if failed:
        parts += [
            html.heading("Failed requests"),
            html.table(
                ["load", "what", "how many", "the first said"],
                [[load, kind, str(count), message] for load, kind, count, message in failed],
                text_columns=(1, 3),
            ),
        ]
    if len(points) > 1:
        parts += [html.heading(f"Over {_axis(points)}"), html.charts(_sweep_charts(points))]
    parts += [html.heading("Latencies"), html.charts(_percentile_charts(points))]
    parts += [html.heading("Over time"), html.charts(_timeline_charts(points))]
    parts += [html.heading("Words"), html.definitions(DEFINITIONS)]
    asked = report["asked"]
    subtitle = (
        f"{report['url']}, {report['endpoint']}, {report['started']}; prompts of {asked['input_tokens']} tokens"
        + (
            f" behind {asked['num_prefixes']} × {asked['shared_prefix_tokens']} shared ones"
            if asked["shared_prefix_tokens"]
            else ""
        )
        + f", answers of {asked['output_tokens']}"
        + (f", {asked['num_turns']} turns" if asked["num_turns"] > 1 else "")
        + f"; seed {report['seed']}"
    )
    if report["trace"]:
        subtitle = f"{report['url']}, {report['endpoint']}, {report['started']}; trace {report['trace']}"
    return html.page(f"Load on {report['model']}", subtitle, parts)


def _axis(points: Sequence[Summary]) -> str:
    unit = str(points[0]["load"]).split(" ", 1)[1]
    return {"client": "clients", "requests/s": "requests sent per second"}.get(unit, unit)


def _sweep_charts(points: Sequence[Summary]) -> list[Chart]:
    axis = _axis(points)

    def over(key: str, share: str = "", factor: float = 1.0) -> list[tuple[float, float]]:
        values = [(point["load_value"], point[key][share] if share else point[key]) for point in points]
        return [(load, value * factor) for load, value in values if value is not None]

    return [
        Chart(
            title="Goodput",
            x_title=axis,
            y_title="requests per second",
            series=[
                Series(name="sent", points=over("requests_per_s")),
                Series(name="in all targets", points=over("goodput")),
            ],
        ),
        Chart(
            title="Tokens",
            x_title=axis,
            y_title="tokens per second",
            series=[Series(name="read", points=over("tokens_per_s"))],
        ),
        *(
            Chart(
                title=name,
                x_title=axis,
                y_title="milliseconds",
                log_y=True,
                series=[Series(name=share, points=over(key, share, 1e3)) for share in ("p50", "p90", "p99")],
            )
            for name, key in figures.LATENCIES.items()
        ),
    ]


def _percentile_charts(points: Sequence[Summary]) -> list[Chart]:
    return [
        Chart(
            title=title,
            x_title="percentile",
            y_title="milliseconds",
            log_y=True,
            series=[
                Series(
                    name=str(point["load"]),
                    points=[
                        (share, value * 1e3) for share, value in enumerate(point["curves"][key], start=1)
                    ],
                )
                for point in points
            ],
        )
        for title, key in (
            ("Time to first token", "ttft_s"),
            ("Gap between tokens (those read together not shown)", "itl_s"),
            ("Whole answer", "e2e_s"),
        )
    ]


def _timeline_charts(points: Sequence[Summary]) -> list[Chart]:
    def over_time(title: str, y_title: str, key: str, factor: float = 1.0) -> Chart:
        return Chart(
            title=title,
            x_title="seconds since the warm-up ended",
            y_title=y_title,
            series=[
                Series(
                    name=str(point["load"]),
                    points=[
                        (piece["time_s"], piece[key] * factor)
                        for piece in point["timeline"]
                        if piece[key] is not None
                    ],
                )
                for point in points
            ],
        )

    return [
        over_time("Tokens read", "tokens per second", "tokens_per_s"),
        over_time("Requests on their way", "most at once", "most_in_flight"),
        over_time("Mean time to first token", "milliseconds", "ttft_mean_s", 1e3),
        *(
            [over_time("Failed requests", "in a stretch of time", "num_failed")]
            if any(point["num_failed"] for point in points)
            else []
        ),
    ]
