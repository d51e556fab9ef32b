"""What the router knows of the cluster when it decides: values only, made by `cluster`, read by the policies.

A view is never changed. A new beat or booking makes a new view that shares what stayed the same, so a decision can
be explained later from the very view that it was taken on.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from tandem_common.speed import DecodeSpeed, PrefillSpeed

# Family and layout digest: workers that share one can hand blocks to each other.
FormatKey = tuple[str, bytes]


class WorkerRole(enum.Enum):
    """What a worker does now; values as in the contracts.

    Decode workers and `both` take requests and can prefill their own; prefill workers and `both` prefill for others.
    """

    PREFILL = 1
    DECODE = 2
    BOTH = 3


class Place(NamedTuple):
    """Where a worker is, from its topology labels; empty: unknown."""

    host: str = ""
    rack: str = ""
    zone: str = ""
    region: str = ""


NOWHERE = Place()


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerFacts:
    """What a worker is: its card."""

    worker_id: str
    epoch: int
    address: str
    model: str
    role: WorkerRole
    draining: bool = False
    block_size: int  # tokens per block
    num_blocks: int
    max_context_tokens: int
    max_step_tokens: int
    max_sequences: int
    formats: Mapping[FormatKey, int] = field(default_factory=dict)  # bytes of one block
    place: Place = NOWHERE
    hardware: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    price: float = 0.0  # of a million tokens

    def blocks_of(self, num_tokens: int) -> int:
        """Blocks that hold this many tokens."""
        return -(-num_tokens // self.block_size)


class Passable(NamedTuple):
    """A queued prompt that newcomers with fewer tokens than `below_tokens` pass."""

    below_tokens: int
    tokens: int
    context: int


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerLoad:
    """What a worker has to do: its last beat and the bookings since. All zero before the first beat."""

    num_sequences: int = 0  # running, waiting and booked
    num_decoding: int = 0
    decode_kv_tokens: int = 0  # of all sequences that decode or are booked to
    num_prefilling: int = 0  # prompts that the queued tokens belong to
    queued_prefill_tokens: int = 0  # accepted or booked, and not yet computed
    queued_prefill_context: int = 0  # sum over those of the tokens before the step that computes each
    passable: tuple[Passable, ...] = ()  # of those, what short prompts pass
    booked_prefill_tokens: int = 0  # of the queued ones, those that the last beat does not know of
    num_used_blocks: int = 0  # held or waited for by requests; cached blocks count as free
    num_cached_blocks: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """How fast blocks move from one worker to another; `latency_ms` is what the smallest chunk takes."""

    bytes_per_ms: float
    latency_ms: float


# What a handoff inside one host can hope for before one has been measured; see `topology` for the other distances.
SAME_HOST_LINK = Link(bytes_per_ms=5e6, latency_ms=0.3)


@dataclass(frozen=True, slots=True)
class Links:
    """Measured links to one worker, by the id of the worker that sends; `best` is as fast as any link to it can be."""

    measured: Mapping[str, Link] = field(default_factory=dict)
    best: Link = field(init=False)

    def __post_init__(self) -> None:
        """Work out the best once: searches ask for it with every request."""
        links = (SAME_HOST_LINK, *self.measured.values())
        best = Link(
            bytes_per_ms=max(link.bytes_per_ms for link in links),
            latency_ms=min(link.latency_ms for link in links),
        )
        object.__setattr__(self, "best", best)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerView:
    """One worker: what it is, what it has to do, how fast it is.

    Speeds are None only while no worker of the model has a fit (see `speeds`).
    """

    facts: WorkerFacts
    load: WorkerLoad = WorkerLoad()
    prefill_speed: PrefillSpeed | None = None
    decode_speed: DecodeSpeed | None = None
    links: Links = Links()
    seen_ms: float = 0.0  # when its last beat came, on the router's clock


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterView:
    """All workers, by model and then in the order of their ids."""

    pools: Mapping[str, tuple[WorkerView, ...]] = field(default_factory=dict)
    crowding_per_ms: Mapping[str, float] = field(default_factory=dict)  # by model, see `crowding`

    @classmethod
    def of(cls, workers: Iterable[WorkerView]) -> ClusterView:
        """The view of these workers."""
        pools: dict[str, list[WorkerView]] = {}
        for worker in sorted(workers, key=lambda worker: worker.facts.worker_id):
            pools.setdefault(worker.facts.model, []).append(worker)
        return cls(pools={model: tuple(pool) for model, pool in sorted(pools.items())})

    def with_loads(self, model: str, loads: Mapping[str, WorkerLoad]) -> ClusterView:
        """The same, but for the loads of some workers of one model; other ids are ignored."""
        pool = tuple(
            replace(worker, load=loads[worker.facts.worker_id]) if worker.facts.worker_id in loads else worker
            for worker in self.pools.get(model, ())
        )
        return replace(self, pools={**self.pools, model: pool}) if pool else self
