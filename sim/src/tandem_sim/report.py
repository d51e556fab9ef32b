"""A measurement in figures: the summary that tables, JSON and pages are made from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tandem_load.histogram import LogHistogram, percentile

from tandem_sim.measurement import Measurement, RequestRecord
from tandem_sim.scenario import Scenario, Targets, WorkerGroup

_SHARES = (0.5, 0.9, 0.95, 0.99)
_CURVE = tuple(i / 100 for i in range(1, 100))
_DIGITS = 6

COLUMNS = (
    "policy",
    "load",
    "req/s",
    "goodput",
    "good",
    "TTFT p50",
    "p99, ms",
    "ITL p50",
    "p99, ms",
    "TPOT p99",
    "hits",
    "local",
    "busy",
)

# A JSON value; summaries are made of nothing else.
Summary = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One simulation that was done: what was asked and what came out."""

    scenario: Scenario
    load: float  # factor by which the traffic was sped up
    rate: float  # requests per second
    measurement: Measurement


def meets(record: RequestRecord, targets: Targets) -> bool:
    """Whether a request met both targets."""
    ttft_s, tpot_s = record.ttft_s, record.tpot_s
    if ttft_s is None or tpot_s is None:
        return False
    return ttft_s <= targets.ttft_s and tpot_s <= targets.tpot_s


def summarise(run: Run) -> Summary:
    """Everything of one run that a report shows; times in seconds."""
    scenario, measurement = run.scenario, run.measurement
    records = measurement.records
    gaps = measurement.all_gaps()
    prompt_tokens = sum(record.num_prompt_tokens for record in records)
    good = sum(meets(record, scenario.targets) for record in records)
    # Never above the rate: of the requests sent, those in target.
    good_share = good / len(records) if records else 0.0
    labels = sorted(measurement.gaps)
    summary: Summary = _rounded(
        {
            "policy": scenario.policy,
            "model": scenario.model,
            "step_model": scenario.step_model,
            "workers": [_group(group) for group in scenario.workers],
            "num_gpus": scenario.num_gpus,
            "seed": scenario.seed,
            "load": run.load,
            "rate": run.rate,
            "targets": {"ttft_s": scenario.targets.ttft_s, "tpot_s": scenario.targets.tpot_s},
            "num_requests": len(records),
            "num_done": sum(record.done for record in records),
            "num_refused": sum(bool(record.refusal) for record in records),
            "num_retried": sum(record.num_attempts > 1 for record in records),
            "num_good": good,
            "goodput": run.rate * good_share,
            "goodput_per_gpu": run.rate * good_share / scenario.num_gpus,
            "good_share": good_share,
            **_latencies(records, gaps),
            "by_label": {
                label: _latencies([r for r in records if r.label == label], measurement.gaps[label])
                for label in labels
                if label
            },
            # Of the router's predictions: |predicted - seen| / seen.
            "predicted_ttft_error": _percentiles(_prediction_errors(records)),
            "hit_rate": sum(record.num_cached_tokens for record in records) / max(1, prompt_tokens),
            "local_prefill_share": sum(record.local_prefill for record in records) / max(1, len(records)),
            "num_handoffs": measurement.num_handoffs,
            "handoff_gbytes": measurement.handoff_bytes / 1e9,
            "num_preemptions": measurement.num_preemptions,
            "num_steps": measurement.num_steps,
            "end_s": measurement.end_s,
            "utilisation": _mean_utilisation(measurement),
            "curves": {
                "ttft_s": [percentile(_ttfts(records), share) for share in _CURVE] if _ttfts(records) else [],
                "itl_s": [gaps.percentile(share) for share in _CURVE] if gaps.count else [],
            },
            "timeline": [
                {
                    "time_s": sample.time_s,
                    "utilisation": sample.utilisation,
                    "num_running": sample.num_running,
                    "num_waiting": sample.num_waiting,
                }
                for sample in measurement.samples
            ],
            "advice": [
                {"time_s": advice.time_s, "desired": advice.desired, "reason": advice.reason}
                for advice in measurement.advice
            ],
        }
    )
    return summary


def to_json(summaries: Sequence[Summary]) -> str:
    """The same summaries give the same text."""
    return json.dumps({"runs": list(summaries)}, indent=1, sort_keys=True) + "\n"


def rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """One row for each run, under `COLUMNS`."""
    return [
        (
            str(s["policy"]),
            f"{s['load']:g}",
            f"{s['rate']:.2f}",
            f"{s['goodput']:.2f}",
            f"{s['good_share']:.1%}",
            _ms(s["ttft_s"]["p50"], 0),
            _ms(s["ttft_s"]["p99"], 0),
            _ms(s["itl_s"]["p50"], 1),
            _ms(s["itl_s"]["p99"], 1),
            _ms(s["tpot_s"]["p99"], 1),
            f"{s['hit_rate']:.1%}",
            f"{s['local_prefill_share']:.0%}",
            " ".join(f"{role} {share:.0%}" for role, share in s["utilisation"].items()),
        )
        for s in summaries
    ]


def table(summaries: Sequence[Summary]) -> str:
    """What a reader of the terminal wants to know."""
    lines = [COLUMNS, *rows(summaries)]
    widths = [max(len(row[i]) for row in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i in (0, len(COLUMNS) - 1) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in lines
    )


def _latencies(records: Sequence[RequestRecord], gaps: LogHistogram) -> Summary:
    tpots = [record.tpot_s for record in records if record.tpot_s is not None]
    return {
        "ttft_s": _percentiles(_ttfts(records)),
        "tpot_s": _percentiles(tpots),
        "itl_s": {_name(share): gaps.percentile(share) for share in _SHARES},
    }


def _ttfts(records: Sequence[RequestRecord]) -> list[float]:
    return [record.ttft_s for record in records if record.ttft_s is not None]


def _prediction_errors(records: Sequence[RequestRecord]) -> list[float]:
    return [
        abs(record.predicted_ttft_s - record.observed_ttft_s) / record.observed_ttft_s
        for record in records
        if record.num_attempts == 1 and record.predicted_ttft_s > 0 and record.observed_ttft_s > 0
    ]


def _percentiles(values: Sequence[float]) -> Summary:
    return {_name(share): percentile(values, share) for share in _SHARES}


def _name(share: float) -> str:
    return f"p{share * 100:g}"


def _group(group: WorkerGroup) -> Summary:
    return {
        "role": group.role,
        "count": group.count,
        "gpu": group.gpu,
        "speed": group.speed,
        "max_step_tokens": group.max_step_tokens,
        "handoffs": group.handoffs,
    }


def _mean_utilisation(measurement: Measurement) -> Summary:
    roles = sorted({role for sample in measurement.samples for role in sample.utilisation})
    return {
        role: sum(sample.utilisation[role] for sample in measurement.samples) / len(measurement.samples)
        for role in roles
    }


def _ms(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value * 1e3:.{digits}f}"


def _rounded(value: Any) -> Any:
    """Floats to six significant digits: what a simulation says is no more exact than that."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return value
