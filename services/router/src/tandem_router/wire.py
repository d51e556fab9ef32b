"""Contract messages to and from what the core speaks."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from zlib import crc32

from tandem.v1 import router_pb2 as pb
from tandem_common.errors import InvalidRequest
from tandem_common.generation_proto import request_class_from_proto
from tandem_common.hashing import HASH_BYTES

from tandem_router.admission import Judgement
from tandem_router.index import BlockIndex
from tandem_router.query import Candidate, Decision, Query
from tandem_router.speculative import SpeculativeIndex
from tandem_router.view import WorkerView

_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
MAX_EXCLUDED = 256
MAX_LABELS = 16
MAX_SESSION_CHARACTERS = 128
MAX_TOKENS = 2**31 - 1


def query_from_proto(
    message: pb.RouteQuery,
    index: BlockIndex,
    turn: int,
    *,
    now_s: float = 0.0,
    expected: SpeculativeIndex | None = None,
    preferred: frozenset[str] = frozenset(),
) -> Query:
    """Check a query and look up who holds its blocks; InvalidRequest names the field at fault.

    `expected` knows blocks that workers will hold soon, `preferred` are the workers of its session.
    """
    if not _REQUEST_ID.fullmatch(message.request_id):
        raise InvalidRequest(
            "request_id must have 1 to 128 letters, digits, dots, dashes or underscores", param="request_id"
        )
    if not message.model:
        raise InvalidRequest("model is missing; name one", param="model")
    if not 1 <= message.num_tokens <= MAX_TOKENS:
        raise InvalidRequest(
            f"num_tokens must be between 1 and {MAX_TOKENS}, got {message.num_tokens}", param="num_tokens"
        )
    if not 1 <= message.max_tokens <= MAX_TOKENS:
        raise InvalidRequest(
            f"max_tokens must be between 1 and {MAX_TOKENS}, got {message.max_tokens}", param="max_tokens"
        )
    if len(message.session_id) > MAX_SESSION_CHARACTERS:
        raise InvalidRequest(
            f"session_id has more than {MAX_SESSION_CHARACTERS} characters", param="session_id"
        )
    num_hashes, rest = divmod(len(message.block_hashes), HASH_BYTES)
    if rest:
        raise InvalidRequest("block_hashes must be a whole number of 16-byte hashes", param="block_hashes")
    if num_hashes > message.num_tokens:
        raise InvalidRequest(
            f"{num_hashes} block hashes for {message.num_tokens} tokens; send one per full block",
            param="block_hashes",
        )
    cached = index.match_packed(message.block_hashes)
    demand = 0.0
    if expected is not None:
        for worker_id, num_blocks in expected.match(message.block_hashes, now_s).items():
            cached[worker_id] = max(num_blocks, cached.get(worker_id, 0))
        if cached:
            demand = expected.demand(message.block_hashes, max(cached.values()), now_s)
    return Query(
        request_id=message.request_id,
        model=message.model,
        num_tokens=message.num_tokens,
        max_tokens=message.max_tokens,
        cached_blocks=cached,
        demand=demand,
        excluded_worker_ids=_worker_ids(message.excluded_worker_ids, "excluded_worker_ids"),
        pinned_worker_ids=_worker_ids(message.pinned_worker_ids, "pinned_worker_ids"),
        required_labels=_labels(message),
        max_price=_max_price(message),
        preferred_worker_ids=preferred,
        tenant=message.tenant,
        ttft_deadline_ms=message.ttft_deadline_ms,
        request_class=request_class_from_proto(message.request_class),
        tie_break=crc32(message.request_id.encode()),
        turn=turn,
        now_ms=1000 * now_s,
    )


def admission_to_proto(judgement: Judgement, num_waiting: int, error_factor: float) -> pb.AdmissionView:
    """What the queue makes of a request."""
    return pb.AdmissionView(
        verdict=judgement.verdict.value,
        num_waiting=num_waiting,
        wait_ms=judgement.wait_ms,
        ttft_bound_ms=judgement.ttft_bound_ms,
        deadline_ms=judgement.deadline_ms,
        error_factor=error_factor,
        reason=judgement.reason,
    )


def route_to_proto(decision: Decision, waited_ms: float = 0.0) -> pb.RouteResponse:
    """Where the request goes."""
    chosen = decision.chosen
    return pb.RouteResponse(
        decode=_ref(chosen.decode),
        prefill=_ref(chosen.prefill) if chosen.prefill else None,
        predicted_ttft_ms=decision.predicted_ttft_ms,
        predicted_cached_tokens=chosen.predicted_cached_tokens,
        waited_ms=waited_ms,
    )


def explanation_to_proto(
    chosen: Decision, weighed: Decision, admission: pb.AdmissionView | None = None
) -> pb.ExplainResponse:
    """The decision `chosen`, and the candidates of `weighed`: the same choice made with a wider search."""
    return pb.ExplainResponse(
        policy=chosen.policy,
        unit=chosen.unit,
        candidates=[_candidate(candidate) for candidate in weighed.candidates],
        chosen=route_to_proto(chosen),
        excluded=weighed.excluded,
        num_candidates=weighed.num_candidates,
        admission=admission,
    )


def _worker_ids(given: Sequence[str], param: str) -> frozenset[str]:
    """Ids of workers, never addresses: an id has no colon."""
    if len(given) > MAX_EXCLUDED or not all(_REQUEST_ID.fullmatch(worker_id) for worker_id in given):
        raise InvalidRequest(f"{param} must be at most {MAX_EXCLUDED} ids of workers", param=param)
    return frozenset(given)


def _labels(message: pb.RouteQuery) -> dict[str, str]:
    labels = dict(message.required_labels)
    if len(labels) > MAX_LABELS or any(len(key) > 128 or len(value) > 128 for key, value in labels.items()):
        raise InvalidRequest(
            f"required_labels must be at most {MAX_LABELS} labels of up to 128 characters",
            param="required_labels",
        )
    return labels


def _max_price(message: pb.RouteQuery) -> float:
    if not message.HasField("max_price_per_million_tokens"):
        return math.inf
    price = message.max_price_per_million_tokens
    if not (math.isfinite(price) and price >= 0):
        raise InvalidRequest(
            f"max_price_per_million_tokens must be a number from 0 on, got {price}",
            param="max_price_per_million_tokens",
        )
    return price


def _ref(worker: WorkerView) -> pb.WorkerRef:
    facts = worker.facts
    return pb.WorkerRef(worker_id=facts.worker_id, epoch=facts.epoch, address=facts.address)


def _candidate(candidate: Candidate) -> pb.Candidate:
    return pb.Candidate(
        decode_worker_id=candidate.decode.facts.worker_id,
        prefill_worker_id=candidate.prefill.facts.worker_id if candidate.prefill else "",
        prefill_cached_blocks=candidate.prefill_cached_blocks,
        decode_cached_blocks=candidate.decode_cached_blocks,
        terms=candidate.terms,
        cost=candidate.cost,
    )
