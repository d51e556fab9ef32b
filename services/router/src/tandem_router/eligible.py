"""Which workers may take a request at all, and why the others may not."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_common.errors import InvalidRequest, NotFound, Unavailable

from tandem_router.query import Query
from tandem_router.view import ClusterView, WorkerFacts, WorkerRole, WorkerView

_EXCLUDED = "failed this request before or excluded by it"
_NOT_PINNED = "not one of the workers that the request names"
_LABELS_DIFFER = "without the labels that the request requires"
_TOO_DEAR = "dearer than the request allows"
_DRAINING = "draining"
_NO_DECODE_PARTNER = "shares no handoff format with a decode worker that can take the request"


@dataclass(frozen=True, kw_only=True, slots=True)
class Eligible:
    """Workers left to choose from; a worker of role `both` is in both lists. `decode` is never empty."""

    prefill: tuple[WorkerView, ...]
    decode: tuple[WorkerView, ...]
    excluded: dict[str, str]  # reasons by worker id


def eligible_workers(query: Query, view: ClusterView) -> Eligible:
    """Sort the model's workers out.

    Raises NotFound when no worker serves the model, InvalidRequest when the sequence is too long for every one of
    them, Unavailable when no worker can take it now.
    """
    pool = view.pools.get(query.model)
    if not pool:
        served = ", ".join(view.pools) or "none"
        raise NotFound(f"no worker serves model {query.model!r}; served now: {served}", param="model")
    excluded: dict[str, str] = {}
    prefill: list[WorkerView] = []
    whole: list[WorkerView] = []
    partial: list[WorkerView] = []
    for worker in pool:
        facts = worker.facts
        if facts.worker_id in query.excluded_worker_ids:
            excluded[facts.worker_id] = _EXCLUDED
        elif query.pinned_worker_ids and facts.worker_id not in query.pinned_worker_ids:
            excluded[facts.worker_id] = _NOT_PINNED
        elif query.required_labels and not query.required_labels.items() <= facts.labels.items():
            excluded[facts.worker_id] = _LABELS_DIFFER
        elif facts.price > query.max_price:
            excluded[facts.worker_id] = _TOO_DEAR
        elif facts.draining:
            excluded[facts.worker_id] = _DRAINING
        elif (too_long := _too_long(query, facts)) is not None:
            excluded[facts.worker_id] = too_long
        else:
            if facts.role is not WorkerRole.DECODE:
                prefill.append(worker)
            if facts.role is not WorkerRole.PREFILL:
                (whole if _holds_whole(query, facts) else partial).append(worker)
    # A worker without room for the longest possible answer serves only when none has it.
    if whole:
        excluded.update((w.facts.worker_id, _room_reason(query, w.facts)) for w in partial)
    decode = whole or partial
    if not decode:
        can_decode = [worker.facts for worker in pool if worker.facts.role is not WorkerRole.PREFILL]
        if can_decode and all(_too_long(query, facts) for facts in can_decode):
            raise InvalidRequest(
                f"the sequence has {query.num_tokens} tokens; no worker of model {query.model!r} can hold it. "
                "Shorten the prompt",
                param="prompt",
            )
        raise Unavailable(f"no worker of model {query.model!r} can take the request: {_summary(excluded)}")
    formats = {key for worker in decode for key in worker.facts.formats}
    partners = []
    for worker in prefill:
        if not formats.isdisjoint(worker.facts.formats):
            partners.append(worker)
        elif worker.facts.role is WorkerRole.PREFILL:
            excluded[worker.facts.worker_id] = _NO_DECODE_PARTNER
    return Eligible(prefill=tuple(partners), decode=tuple(decode), excluded=excluded)


def _too_long(query: Query, facts: WorkerFacts) -> str | None:
    """Why the sequence can never start on this worker, if so."""
    if query.num_tokens > facts.max_context_tokens:
        return f"context of {facts.max_context_tokens} tokens is too short"
    if facts.blocks_of(query.num_tokens) > facts.num_blocks:
        return f"{facts.num_blocks} blocks cannot hold the sequence"
    return None


def _holds_whole(query: Query, facts: WorkerFacts) -> bool:
    # The last token drawn takes no place.
    longest = min(query.num_tokens + max(query.max_tokens, 1) - 1, facts.max_context_tokens)
    return facts.blocks_of(longest) <= facts.num_blocks


def _room_reason(query: Query, facts: WorkerFacts) -> str:
    return f"{facts.num_blocks} blocks cannot hold the sequence and {query.max_tokens} new tokens"


def _summary(excluded: dict[str, str]) -> str:
    """Reasons with how many workers each concerns; no ids, since clients may read it."""
    counts: dict[str, int] = {}
    for reason in excluded.values():
        counts[reason] = counts.get(reason, 0) + 1
    return ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items())) or "no decode worker"
