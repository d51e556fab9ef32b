"""Registry, router and planner on virtual time: their real cores, fed as their shells feed them."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence

from tandem_common.registry import RegisteredWorker
from tandem_planner.advisor import Advisor
from tandem_planner.config import PlannerConfig
from tandem_planner.observer import Observer
from tandem_planner.targets import Targets as PlannerTargets
from tandem_router.bookings import Bookings
from tandem_router.cluster import Cluster
from tandem_router.config import RouterConfig
from tandem_router.index import BlockIndex
from tandem_router.query import ROUTE_LIMITS, Decision, Query

from tandem_sim.event_loop import EventLoop
from tandem_sim.measurement import Advice
from tandem_sim.scenario import Scenario
from tandem_sim.worker import Worker

# A card lives for three heartbeats.
_BEATS_TO_LIVE = 3
_SWEEP_BLOCKS = 1 << 20
_UNUSED = "simulated; never sent"


class ControlPlane:
    """What the router and the planner know of the workers, as late as they would know it."""

    def __init__(self, scenario: Scenario, loop: EventLoop, link_latency_ms: float) -> None:
        self._scenario = scenario
        self._control = scenario.control
        self._loop = loop
        self._link_latency_ms = link_latency_ms
        # The services' own configurations, so that a policy is found by the name that the router knows.
        config = RouterConfig(
            redis_url="redis://unused",
            cluster="simulated",
            cluster_secret=_UNUSED,
            policy=scenario.policy,
            random_seed=scenario.seed,
            expected_new_tokens=scenario.expected_new_tokens,
        )
        self._policy = config.make_policy()
        self._cluster = Cluster(
            Bookings(max_age_s=config.booking_max_age_s, max_per_worker=config.max_bookings_per_worker),
            empty_grace_s=config.registry_grace_s,
        )
        self._index = BlockIndex()
        self._turn = 0
        self._registered: dict[str, RegisteredWorker] = {}
        planner = PlannerConfig(
            redis_url="redis://unused",
            cluster="simulated",
            cluster_secret=_UNUSED,
            interval_s=self._control.plan_interval_s,
        )
        self._observer = Observer(planner.window_s)
        targets = PlannerTargets(
            ttft_ms=scenario.targets.ttft_s * 1e3, itl_ms=scenario.targets.tpot_s * 1e3, percentile=0.95
        )
        self._advisor = Advisor(
            targets,
            planner.policy(),
            num_to_switch=planner.num_to_switch,
            num_to_fall=planner.num_to_fall,
        )
        self.advice: list[Advice] = []

    def start(self, workers: Sequence[Worker]) -> None:
        """Register the workers and begin to look at them, each a little later than the one before."""
        control = self._control
        for number, worker in enumerate(workers):
            self._index.load(worker.spec.worker_id, 1, ())
            self._register(worker)
            self._loop.every(
                control.heartbeat_s,
                lambda worker=worker: self._register(worker),  # type: ignore[misc]
                first_s=control.heartbeat_s * (1 + number / len(workers)),
            )
        self._loop.every(control.poll_s, self._poll)
        if self._scenario.with_planner:
            self._loop.every(control.observe_interval_s, self._observe)
            self._loop.every(control.plan_interval_s, self._plan, first_s=control.plan_interval_s)

    def route(
        self, request_id: str, hashes: Sequence[bytes], sizes: tuple[int, int], excluded: Iterable[str]
    ) -> Decision:
        """Choose and book, as the router's Route does; sizes are the known and the asked-for tokens.

        Raises TandemError for a refusal.
        """
        num_tokens, max_tokens = sizes
        query = Query(
            request_id=request_id,
            model=self._scenario.model,
            num_tokens=num_tokens,
            max_tokens=max_tokens,
            cached_blocks=self._index.match(hashes),
            excluded_worker_ids=frozenset(excluded),
            tie_break=zlib.crc32(request_id.encode()),
            turn=self._turn,
        )
        decision = self._policy.choose(query, self._cluster.view, ROUTE_LIMITS)
        self._turn += 1
        self._cluster.book(query, decision, self._loop.now_s)
        return decision

    def cache_changed(self, worker_id: str, removed: Sequence[bytes], stored: Sequence[bytes]) -> None:
        """A worker's KV event, which reaches the index a little later."""
        self._loop.after(
            self._control.kv_event_delay_s,
            lambda: _ignore(self._index.apply(worker_id, 1, removed=removed, stored=stored)),
        )

    def lost(self, worker: Worker) -> None:
        """A worker died: its records expire, and its blocks are forgotten then."""
        self._loop.after(
            _BEATS_TO_LIVE * self._control.heartbeat_s, lambda: self._expire(worker.spec.worker_id)
        )

    def _register(self, worker: Worker) -> None:
        if worker.alive:
            beat = worker.beat(self._link_latency_ms)
            self._registered[worker.spec.worker_id] = RegisteredWorker(worker.card, beat)

    def _expire(self, worker_id: str) -> None:
        del self._registered[worker_id]
        self._index.forget(worker_id)
        while self._index.sweep(_SWEEP_BLOCKS):
            pass

    def _poll(self) -> None:
        self._cluster.observe(dict(self._registered), self._loop.now_s)

    def _observe(self) -> None:
        self._observer.observe(self._loop.now_s, dict(self._registered))

    def _plan(self) -> None:
        now_s = self._loop.now_s
        decisions = self._advisor.decide(
            self._observer.observations(now_s), unix_ms=round(now_s * 1e3), lease_token=1
        )
        for decision in decisions:
            self.advice.append(
                Advice(time_s=now_s, desired=str(decision.proposal.desired), reason=decision.proposal.reason)
            )


def _ignore(_: bool) -> None:
    """A late event of a worker that was forgotten is no error."""
