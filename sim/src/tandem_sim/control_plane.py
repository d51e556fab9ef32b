"""Registry, router and planner on virtual time: their real cores, fed as their shells feed them."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_common.registry import RegisteredWorker
from tandem_planner.advisor import Advisor
from tandem_planner.config import PlannerConfig
from tandem_planner.observer import Observer
from tandem_planner.targets import Targets as PlannerTargets
from tandem_router.index import BlockIndex

from tandem_sim.event_loop import EventLoop
from tandem_sim.measurement import Advice
from tandem_sim.routers import Router
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
        self._index = BlockIndex()
        self.routers = [
            Router(f"router-{number}", scenario, loop, self._index) for number in range(scenario.num_routers)
        ]
        for router in self.routers:
            router.meet([other for other in self.routers if other is not router])
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
        registered = dict(self._registered)
        for router in self.routers:
            router.observe(registered)

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
