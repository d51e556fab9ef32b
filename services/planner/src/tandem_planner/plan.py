"""The planner's policy: which split of the workers would meet the targets. Pure; values in, values out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tandem_planner.demand import MissingData, estimate_demand
from tandem_planner.observations import Observations
from tandem_planner.prediction import Prediction, Predictor
from tandem_planner.split import Split
from tandem_planner.targets import Targets

# Seconds of traffic without which nothing is proposed.
MIN_OBSERVED_S = 15.0
# No search for more workers than this.
MAX_WORKERS = 1_024
# A split that misses the targets too must be this much better to be worth the move.
_WORTH_MOVING = 0.85


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """How cautious a plan is."""

    # Squared coefficient of variation of prompt times; 1 is that of an exponential distribution.
    service_cv2: float = 1.0
    min_observed_s: float = MIN_OBSERVED_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """What `plan` would do, and why.

    `desired` divides the workers that exist now; it equals `current` when nothing better is known. `smallest` is the
    fewest workers that would meet the targets: more or fewer than there are, or None when it is not known or no number
    would do.
    """

    model: str
    current: Split
    desired: Split
    smallest: Split | None
    reason: str
    confident: bool
    figures: dict[str, float] = field(default_factory=dict)


def plan(seen: Observations, targets: Targets, policy: Policy | None = None) -> Proposal:
    """The smallest split of the workers that exist now whose predicted percentiles meet the targets.

    Of all splits that do, the one that moves the fewest workers: a split that meets the targets stays. Without data
    nothing changes, and the reason says what is missing.
    """
    policy = policy or Policy()
    current, traffic = seen.workers.split, seen.traffic
    figures = _observed_figures(seen)

    def stay(reason: str, *, confident: bool, smallest: Split | None = None) -> Proposal:
        return Proposal(
            model=seen.model,
            current=current,
            desired=current,
            smallest=smallest,
            reason=reason,
            confident=confident,
            figures=figures | _count_figures("needed", smallest),
        )

    if not current.total:
        return stay("no worker is serving", confident=False)
    if seen.workers.num_silent:
        return stay(f"{seen.workers.num_silent} workers have sent no heartbeat yet", confident=False)
    if traffic.observed_s < policy.min_observed_s:
        return stay(
            f"traffic was watched for {traffic.observed_s:.0f} s only, {policy.min_observed_s:.0f} s are needed",
            confident=False,
        )
    if traffic.rate <= 0.0:
        idle = _smallest_when_idle(current)
        return stay(
            f"no requests in {traffic.observed_s:.0f} s; {idle} would do", confident=True, smallest=idle
        )
    try:
        demand = estimate_demand(seen)
    except MissingData as missing:
        return stay(str(missing), confident=False)

    predictor = Predictor(seen=seen, demand=demand, service_cv2=policy.service_cv2, share=targets.share_each)
    now = predictor.whole(current)
    smallest = _smallest(predictor, targets)
    desired = _divide(predictor, targets, smallest)
    then = now if desired == current else predictor.whole(desired)
    figures |= {
        "prompt_ms": demand.prompt_ms,
        "output_tokens": demand.output_tokens,
        "sequence_tokens": demand.sequence_tokens,
    }
    if current.num_prefill:
        figures["prefill_utilisation"] = predictor.prefill_utilisation(current.num_prefill)
    figures |= _latency_figures("current", now) | _latency_figures("desired", then)
    return Proposal(
        model=seen.model,
        current=current,
        desired=desired,
        smallest=smallest,
        reason=_reason(seen, targets, smallest, (current, now), (desired, then)),
        confident=True,
        figures=figures | _count_figures("needed", smallest),
    )


def _smallest_when_idle(current: Split) -> Split:
    """Fewest workers that can serve at all, of the kinds that there are."""
    return Split(
        num_prefill=min(1, current.num_prefill),
        num_decode=min(1, current.num_prefill + current.num_decode),
        num_both=min(1, current.num_both) if not (current.num_prefill or current.num_decode) else 0,
    )


def _smallest(predictor: Predictor, targets: Targets) -> Split | None:
    """Fewest workers of each kind that meet the targets, or None when no number does."""
    traffic, current = predictor.seen.traffic, predictor.seen.workers.split

    def fewest_aggregated(rate: float) -> int | None:
        return _fewest(lambda n: predictor.aggregated(n, rate).excess(targets) <= 1.0)

    num_prefill: int | None = 0
    num_decode: int | None = 0
    num_both: int | None = 0
    if traffic.both_rate > 0.0:
        num_both = fewest_aggregated(traffic.both_rate)
    if traffic.split_rate > 0.0:
        if not current.num_prefill:
            num_decode = fewest_aggregated(traffic.split_rate)
        if current.num_prefill or num_decode is None:
            num_prefill = _fewest(lambda n: predictor.ttft_ms(n) <= targets.ttft_ms)
            num_decode = _fewest(lambda n: predictor.itl_ms(n) <= targets.itl_ms)
    if num_prefill is None or num_decode is None or num_both is None:
        return None
    return Split(num_prefill=num_prefill, num_decode=num_decode, num_both=num_both)


def _fewest(is_enough: Callable[[int], bool]) -> int | None:
    """Smallest number from 1 to MAX_WORKERS that is enough; more is never less."""
    high = 1
    while not is_enough(high):
        if high >= MAX_WORKERS:
            return None
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if is_enough(middle):
            high = middle
        else:
            low = middle
    return high


def _divide(predictor: Predictor, targets: Targets, smallest: Split | None) -> Split:
    """How the prefill and decode workers of now should be divided; those of role both stay what they are."""
    current = predictor.seen.workers.split
    available = current.num_prefill + current.num_decode
    if available < 2 or predictor.seen.traffic.split_rate <= 0.0:
        return current
    now = predictor.split(current).excess(targets)
    if now <= 1.0:
        return current

    def divided(num_prefill: int) -> Split:
        return Split(num_prefill=num_prefill, num_decode=available - num_prefill, num_both=current.num_both)

    if smallest is not None and smallest.num_prefill + smallest.num_decode <= available:
        lowest, highest = smallest.num_prefill, available - smallest.num_decode
        return divided(min(max(current.num_prefill, lowest), highest))
    # Nothing that exists is enough: take what comes nearest, if it comes much nearer.
    excess, _, num_prefill = min(
        (predictor.split(divided(n)).excess(targets), abs(n - current.num_prefill), n)
        for n in range(1, available)
    )
    return divided(num_prefill) if excess < _WORTH_MOVING * now else current


def _reason(
    seen: Observations,
    targets: Targets,
    smallest: Split | None,
    now: tuple[Split, Prediction],
    then: tuple[Split, Prediction],
) -> str:
    current, prediction = now
    wanted = f"TTFT {targets.ttft_ms:g} ms and ITL {targets.itl_ms:g} ms for {100 * targets.percentile:g} % of requests"
    load = f"{seen.traffic.rate:.3g} requests/s on {current}"
    if prediction.excess(targets) <= 1.0:
        text = f"{load} meet {wanted}: {prediction} predicted"
    elif then[0] != current:
        verb = "meets them" if then[1].excess(targets) <= 1.0 else "comes nearest"
        text = f"{load} miss {wanted}: {prediction} predicted; {then[0]} {verb}: {then[1]}"
    else:
        text = f"{load} miss {wanted}: {prediction} predicted, and no other split of these workers is much better"
    if smallest is None:
        return f"{text}; no number of workers would meet them"
    if smallest == then[0]:
        return text
    return f"{text}; the smallest that would: {smallest}"


def _observed_figures(seen: Observations) -> dict[str, float]:
    traffic = seen.traffic
    return {
        "observed_s": traffic.observed_s,
        "arrival_rate_per_s": traffic.rate,
        "arrival_cv2": traffic.arrival_cv2,
        "num_decoding": traffic.num_decoding,
        "num_busy_prefill": traffic.num_busy_prefill,
        "queued_prefill_tokens": traffic.queued_prefill_tokens,
        "num_draining": float(seen.workers.num_draining),
    }


def _latency_figures(prefix: str, prediction: Prediction) -> dict[str, float]:
    """Predictions without bound are left out."""
    values = {f"{prefix}_ttft_ms": prediction.ttft_ms, f"{prefix}_itl_ms": prediction.itl_ms}
    return {name: value for name, value in values.items() if math.isfinite(value)}


def _count_figures(prefix: str, split: Split | None) -> dict[str, float]:
    if split is None:
        return {}
    return {
        f"{prefix}_num_prefill": float(split.num_prefill),
        f"{prefix}_num_decode": float(split.num_decode),
        f"{prefix}_num_both": float(split.num_both),
    }
