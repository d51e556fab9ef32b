"""The figures of a measurement as text, one row for each figure and one column for each point."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_load.summary import Summary

LATENCIES = {"TTFT": "ttft_s", "ITL": "itl_s", "TPOT": "tpot_s", "E2E": "e2e_s"}


def rows(
    points: Sequence[Summary], shares: Sequence[str] = ("p50", "p99"), *, one_row_each: bool = False
) -> list[tuple[str, list[str]]]:
    """Names of figures, each with its value at every point; percentiles share a row unless `one_row_each`."""
    found = [("requests sent", [str(point["num_sent"]) for point in points])]
    for name, key in (("failed", "num_failed"), ("not finished", "num_unfinished")):
        if any(point[key] for point in points):
            found.append((name, [str(point[key]) for point in points]))
    found += [
        ("requests/s", [number(point["requests_per_s"]) for point in points]),
        ("goodput, requests/s", [number(point["goodput"]) for point in points]),
        ("good, % of sent", [f"{100 * point['good_share']:.1f}" for point in points]),
        ("tokens/s", [number(point["tokens_per_s"]) for point in points]),
    ]
    groups = [[share] for share in shares] if one_row_each else [list(shares)]
    for name, key in LATENCIES.items():
        for group in groups:
            cells = [" / ".join(milliseconds(point[key][share]) for share in group) for point in points]
            found.append((f"{name} {' / '.join(group)}, ms", cells))
    return found


def notes(points: Sequence[Summary], found_by_probe: Sequence[str]) -> list[str]:
    """What else a reader must know to believe the figures."""
    lines = [_targets(points), _prompts(points), _answers(points), _client(points)]
    if any(point["was_interrupted"] for point in points):
        lines.append("Interrupted: the last point has only the requests that were answered by then.")
    return [*lines, *(f"Note: {note}." for note in found_by_probe)]


def failures(points: Sequence[Summary]) -> list[tuple[str, str, int, str]]:
    """Point, kind, how many, what the first one said; with the Retry-After that came with refusals."""
    return [
        (str(point["load"]), kind, int(count["count"]), f"{count['message']}{_retry_after(count)}")
        for point in points
        for kind, count in point["failures"].items()
    ]


def number(value: float | None) -> str:
    """Three digits or more."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def milliseconds(seconds: float | None) -> str:
    """Seconds as milliseconds."""
    if seconds is None:
        return "-"
    value = seconds * 1e3
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _targets(points: Sequence[Summary]) -> str:
    words = {"ttft_s": "TTFT", "tpot_s": "TPOT", "itl_s": "every gap", "e2e_s": "E2E"}
    targets = [
        f"{words[key]} ≤ {value * 1e3:g} ms"
        for key, value in points[0]["targets"].items()
        if value is not None
    ]
    missed = {name: sum(point["missed"][name] for point in points) for name in points[0]["missed"]}
    late = ", ".join(f"{name.upper()} {count}" for name, count in missed.items() if count)
    asked = " and ".join(targets) or "answered in full (no target was set)"
    return f"Good: {asked}." + (f" Missed by answered requests: {late}." if late else "")


def _prompts(points: Sequence[Summary]) -> str:
    counts = [point["prompt_tokens"] for point in points if point["prompt_tokens"]["mean"] is not None]
    if not counts:
        return "Prompts: the server does not say how many tokens they had."
    cached = max(point["cached_share"] for point in points)
    return (
        f"Prompts: {_spread(counts)} tokens, as the server counts them; "
        + (f"up to {100 * cached:.0f} % of them" if cached >= 0.005 else "none of them")
        + " came from its cache, as it says."
    )


def _answers(points: Sequence[Summary]) -> str:
    counts = [point["answer_tokens"] for point in points if point["answer_tokens"]["mean"] is not None]
    if not counts:
        return "No request was answered."
    by = points[0]["tokens_counted_by"]
    per_event = max(point["tokens_per_event"] for point in points)
    return f"Answers: {_spread(counts)} tokens, counted by {by}; up to {per_event:.2f} tokens in an event."


def _spread(counts: Sequence[Summary]) -> str:
    least, most = min(count["least"] for count in counts), max(count["most"] for count in counts)
    if least == most:
        return f"{least:,}"
    means = [count["mean"] for count in counts]
    return f"{least:,} to {most:,} (mean {sum(means) / len(means):,.0f})"


def _client(points: Sequence[Summary]) -> str:
    costs = [point["client"]["cpu_us_per_token"] for point in points]
    known = [cost for cost in costs if cost is not None]
    if not known:
        return "This client read no token."
    lags = [point["client"]["lag_s"]["p99"] or 0.0 for point in points]
    cost = f"{min(known):.1f}" if len(known) == 1 else f"{min(known):.1f} to {max(known):.1f}"
    busy = max(point["client"]["cpu_s"] / max(point["window_s"], 1e-9) for point in points)
    text = (
        f"This client: {cost} µs of CPU per token read, {100 * busy:.0f} % of a core at most; "
        f"99 % of requests went out within {milliseconds(max(lags))} ms of when they were due."
    )
    lagging = [str(point["load"]) for point in points if point["client"]["lagged"]]
    if lagging:
        text += (
            f" It LAGGED at {', '.join(lagging)}: latencies there include its own delay; "
            "run it on a machine with a free core."
        )
    return text


def _retry_after(count: Summary) -> str:
    least, most = count["least_retry_after_s"], count["most_retry_after_s"]
    if least is None:
        return ""
    return f" (Retry-After {least:g} s)" if least == most else f" (Retry-After {least:g} to {most:g} s)"
