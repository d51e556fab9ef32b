"""Where a stream of requests goes: by speed, and away from a holder of a hot prefix that is too busy. Virtual time."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from router_fakes import make_beat, make_card, make_query, registry_of
from tandem.v1 import cluster_pb2 as pb
from tandem_common.speed import PrefillSpeed
from tandem_router.bookings import Bookings
from tandem_router.cluster import Cluster
from tandem_router.policies import Predictive
from tandem_router.query import ROUTE_LIMITS

BEAT_S = 0.25
BLOCK_SIZE = 16


class Fleet:
    """Prefill workers that compute one prompt after another, each with the speed it has, and idle decode workers."""

    def __init__(self, *ms_per_token: float) -> None:
        self.cluster = Cluster(Bookings(max_age_s=10, max_per_worker=4096), empty_grace_s=3)
        self.policy = Predictive(expected_new_tokens=1)
        self._speeds = {f"w{i}": each for i, each in enumerate(ms_per_token)}
        self._cards = [
            make_card(
                name,
                pb.ROLE_PREFILL if name in self._speeds else pb.ROLE_DECODE,
                max_sequences=10_000,
                num_blocks=10**7,
                max_context_tokens=10**5,
            )
            for name in (*self._speeds, "d0", "d1")
        ]
        self.left = dict.fromkeys(self._speeds, 0.0)  # tokens to compute
        self.waits_ms: list[float] = []  # of those that were routed, until their prompt's turn
        self._accepted: list[str] = []
        self._now_s = 0.0
        self._num_beats = 0
        self._beat()

    def advance(self, duration_s: float) -> None:
        """Compute, and tell with each beat that comes due."""
        until_s = self._now_s + duration_s
        while self._now_s < until_s - 1e-9:
            next_beat_s = (self._num_beats) * BEAT_S
            step_s = min(until_s, max(next_beat_s, self._now_s)) - self._now_s
            for name, speed in self._speeds.items():
                self.left[name] = max(0.0, self.left[name] - 1000 * step_s / speed)
            self._now_s += step_s
            if self._now_s >= next_beat_s - 1e-9:
                self._beat()

    def _beat(self) -> None:
        self._num_beats += 1
        beats = [
            make_beat(
                name,
                sequence=self._num_beats,
                num_waiting=1 if self.left[name] else 0,
                queued_prefill_tokens=round(self.left[name]),
                accepted_request_ids=self._accepted[-500:],
                prefill_speed=PrefillSpeed(a_ms=0.0, b_ms=speed, c_ms=0.0, num_samples=99).to_proto(),
            )
            for name, speed in self._speeds.items()
        ]
        # So slow at prompts that all are computed by those who are there for it.
        slow = PrefillSpeed(a_ms=0.0, b_ms=100.0, c_ms=0.0, num_samples=99).to_proto()
        beats += [
            make_beat(name, accepted_request_ids=self._accepted[-500:], prefill_speed=slow)
            for name in ("d0", "d1")
        ]
        self.cluster.observe(registry_of(*self._cards, beats=beats), self._now_s)

    def route(
        self, number: int, num_tokens: int, cached: dict[str, int] | None = None, demand: float = 0.0
    ) -> str:
        """Name of the worker that gets it; `cached` are blocks by worker."""
        query = make_query(
            num_tokens,
            request_id=f"r{number}",
            max_tokens=1,
            tie_break=number * 7919,
            now_ms=1000 * self._now_s,
            cached_blocks=cached or {},
            demand=demand,
        )
        decision = self.policy.choose(query, self.cluster.view, ROUTE_LIMITS)
        self.cluster.book(query, decision, self._now_s)
        name = decision.chosen.computing.facts.worker_id
        self.waits_ms.append(self.left[name] * self._speeds[name])
        self.left[name] += num_tokens - decision.chosen.predicted_cached_tokens
        self._accepted.append(f"r{number}")
        return name


def test_a_slow_worker_gets_the_share_that_its_speed_earns() -> None:
    fleet = Fleet(0.1, 0.1, 0.2, 0.4)  # 10, 10, 5 and 2.5 tokens per millisecond
    shares: Counter[str] = Counter()
    num_requests = 1500
    for number in range(num_requests):
        shares[fleet.route(number, 1000)] += 1
        fleet.advance(1000 / (1.05 * 27.5) / 1000)  # a little more than they can compute
    for name, speed in (("w0", 10), ("w1", 10), ("w2", 5), ("w3", 2.5)):
        assert shares[name] / num_requests == pytest.approx(speed / 27.5, rel=0.15)


HOT_TOKENS, OWN_TOKENS = 7168, 160


class Served(NamedTuple):
    """Of a hot prefix: who computed it, in order, and how long each waited for its turn."""

    names: list[str]
    waits_ms: list[float]


def serve_hot_prefix(num_requests: int, gap_s: float, *, decay: bool = True) -> Served:
    """Requests that share a prefix which one worker holds; who computes it holds it from then on.

    Without `decay` the router does not know how much the prefix is asked for.
    """
    fleet = Fleet(*[0.1] * 8)
    demand = 1 / gap_s if decay and gap_s else 0.0
    holders = {"w3": HOT_TOKENS // BLOCK_SIZE}
    names = []
    for number in range(num_requests):
        name = fleet.route(number, HOT_TOKENS + OWN_TOKENS, dict(holders), demand)
        holders[name] = HOT_TOKENS // BLOCK_SIZE
        names.append(name)
        fleet.advance(gap_s)
    return Served(names, fleet.waits_ms)


def test_a_hot_prefix_stays_where_it_is_while_its_holder_keeps_up() -> None:
    # 16 ms of work each 40 ms.
    assert set(serve_hot_prefix(300, 0.040).names) == {"w3"}


@pytest.mark.parametrize("gap_s", [0.012, 0.004])
def test_a_hot_prefix_spreads_when_its_holder_cannot_keep_up(gap_s: float) -> None:
    num_requests = 1200
    shares = Counter(serve_hot_prefix(num_requests, gap_s).names)
    # Nobody gets more than a second's work beyond what it can do meanwhile.
    own_s = OWN_TOKENS * 0.1 / 1000
    assert max(shares.values()) * own_s <= num_requests * gap_s + 1.0


@pytest.mark.parametrize(("gap_s", "soon_s"), [(0.012, 4.0), (0.008, 2.0)])
def test_credit_for_a_hot_prefix_decays_so_that_it_spreads_before_its_holder_is_far_behind(
    gap_s: float, soon_s: float
) -> None:
    # 1.3 and 2 times what its holder can do.
    num_requests = round(8.0 / gap_s)
    decaying = serve_hot_prefix(num_requests, gap_s)
    plain = serve_hot_prefix(num_requests, gap_s, decay=False)
    assert len(set(decaying.names[: round(soon_s / gap_s)])) >= 3
    assert len(set(plain.names)) < 3

    def p99(served: Served) -> float:
        return sorted(served.waits_ms)[round(0.99 * num_requests)]

    assert p99(decaying) < p99(plain) / 3


def test_a_burst_on_a_hot_prefix_goes_to_all_workers() -> None:
    shares = Counter(serve_hot_prefix(800, 0.0).names)
    assert len(shares) == 8
    assert max(shares.values()) <= 1.5 * 800 / 8
