"""A measurement in figures: what tables, JSON and pages are made from."""

from __future__ import annotations

from typing import Any

import msgspec

from tandem_load.generator import READ_INTERVAL_S
from tandem_load.histogram import LogHistogram
from tandem_load.load_task import Arrivals, Clients, LoadTask
from tandem_load.measured import Measured

_SHARES = (0.5, 0.9, 0.95, 0.99)
_CURVE = tuple(i / 100 for i in range(1, 100))
# Above this the generator was not there when a request was due.
LAG_TOLERANCE_S = 0.010

# A JSON value; summaries are made of nothing else.
Summary = dict[str, Any]

DEFINITIONS = {
    "sent": "requests that were to be sent within the window; whatever became of them, they count",
    "TTFT": "first non-empty token received minus request sent",
    "ITL": "gap between two tokens of one request, as they are read; tokens of one event have one gap, those that are "
    "read together one gap and zeros",
    "E2E": "last token received minus request sent",
    "TPOT": "(E2E - TTFT) / (tokens - 1) of one request",
    "goodput": "requests per second that meet all targets, counted over requests sent: a failed one is not good",
    "request sent": "when it was to be sent: its arrival in an open loop, the end of the answer before it in a closed "
    "one; a client that lags adds to the latency, and the lag is shown",
}


def summarise(task: LoadTask, measured: Measured) -> Summary:
    """Everything that reports show of one point; times in seconds."""
    window_s = measured.window_s
    num_cpu_tokens = measured.num_cpu_events * measured.tokens_per_event

    def per_s(number: float) -> float:
        return number / window_s if window_s > 0 else 0.0

    lag = measured.lag.percentile(0.99) or 0.0
    return {
        "load": load_name(task),
        "load_value": load_value(task),
        "window_s": window_s,
        "warmup_s": task.warmup_s,
        "seed": task.seed,
        "was_interrupted": measured.was_interrupted,
        "num_sent": measured.num_sent,
        "num_done": measured.num_done,
        "num_failed": measured.num_failed,
        "num_unfinished": measured.num_unfinished,
        "num_good": measured.num_good,
        "good_share": measured.num_good / measured.num_sent if measured.num_sent else 0.0,
        "goodput": per_s(measured.num_good),
        "requests_per_s": per_s(measured.num_sent),
        "tokens_per_s": per_s(measured.num_window_events * measured.tokens_per_event),
        "targets": msgspec.to_builtins(task.targets),
        "missed": measured.missed,
        "failures": {kind: msgspec.to_builtins(count) for kind, count in measured.failures.items()},
        "ttft_s": _percentiles(measured.ttft),
        "itl_s": _percentiles(measured.itl),
        "tpot_s": _percentiles(measured.tpot),
        "e2e_s": _percentiles(measured.e2e),
        "prompt_tokens": _tokens(measured, "prompt_tokens"),
        "answer_tokens": _tokens(measured, "answer_tokens"),
        "cached_share": measured.num_cached_tokens / max(1, measured.prompt_tokens.total),
        "tokens_counted_by": "events with text" if measured.num_without_usage else "the server's usage",
        "tokens_per_event": measured.tokens_per_event,
        "client": {
            "cpu_us_per_token": 1e6 * measured.cpu_s / num_cpu_tokens if num_cpu_tokens else None,
            "cpu_s": measured.cpu_s,
            "lag_s": _percentiles(measured.lag),
            "lagged": lag > LAG_TOLERANCE_S,
            "num_connections": measured.num_connections,
            "read_interval_s": READ_INTERVAL_S,
        },
        "curves": {
            name: [histogram.percentile(share) for share in _CURVE] if histogram.counts else []
            for name, histogram in (
                ("ttft_s", measured.ttft),
                ("itl_s", measured.itl),
                ("e2e_s", measured.e2e),
            )
        },
        "timeline": [
            {
                "time_s": index * measured.slice_s,
                "sent_per_s": piece.num_sent / measured.slice_s,
                "tokens_per_s": piece.num_text_events * measured.tokens_per_event / measured.slice_s,
                "most_in_flight": piece.most_in_flight,
                "num_failed": piece.num_failed,
                "ttft_mean_s": piece.ttft_sum_s / piece.num_first_tokens if piece.num_first_tokens else None,
            }
            for index, piece in enumerate(measured.slices)
        ],
    }


def load_name(task: LoadTask) -> str:
    """How a point is called."""
    match task.traffic:
        case Clients(count=count):
            return f"{count} client{'s' * (count != 1)}"
        case Arrivals(rate=rate):
            return f"{rate:g} requests/s"
        case replay:
            return f"trace, speed {replay.speed:g}"


def load_value(task: LoadTask) -> float:
    """What a sweep varies."""
    match task.traffic:
        case Clients(count=count):
            return float(count)
        case Arrivals(rate=rate):
            return rate
        case replay:
            return replay.speed


def _percentiles(values: LogHistogram) -> Summary:
    found: Summary = {f"p{share * 100:g}": values.percentile(share) for share in _SHARES}
    return found | {"mean": values.mean, "max": values.most if values.counts else None}


def _tokens(measured: Measured, name: str) -> Summary:
    count = getattr(measured, name)
    return {"total": count.total, "mean": count.mean, "least": count.least, "most": count.most}
