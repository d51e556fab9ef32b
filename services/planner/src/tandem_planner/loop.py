"""The planner's rhythm: look at the heartbeats often, plan now and then, tell what changed."""

from __future__ import annotations

import asyncio
import contextlib
import time

import redis.asyncio
from redis.exceptions import RedisError
from tandem_common.keys import Keys
from tandem_common.logs import get_logger
from tandem_common.registry import ClusterWatcher

from tandem_planner.advisor import Advisor
from tandem_planner.config import PlannerConfig
from tandem_planner.decision import Decision
from tandem_planner.lease import PlannerLease
from tandem_planner.metrics import Metrics
from tandem_planner.observer import Observer

# Between looks for the first worker.
_FIRST_PLAN_S = 0.5

_log = get_logger("planner")


class PlanLoop:
    """Ties registry, policy, lease and Redis together. Owned by the task group that runs its two methods."""

    def __init__(
        self,
        config: PlannerConfig,
        *,
        client: redis.asyncio.Redis,
        watcher: ClusterWatcher,
        lease: PlannerLease,
        metrics: Metrics,
    ) -> None:
        self.advisor = Advisor(
            config.targets(),
            config.policy(),
            num_to_switch=config.num_to_switch,
            num_to_fall=config.num_to_fall,
        )
        self.interval_s = config.interval_s
        self._max_stale_ms = 1000.0 * config.max_stale_s
        self._observer = Observer(config.window_s)
        self._redis = client
        self._keys = Keys(config.cluster)
        self._watcher = watcher
        self._lease = lease
        self._metrics = metrics
        self._hurry = asyncio.Event()

    async def watch_traffic(self) -> None:
        """Look at the heartbeats whenever the watcher did. A view that Redis does not confirm teaches nothing."""
        while True:
            age_ms = self._watcher.stale_ms
            self._metrics.registry_age_s.set(age_ms / 1000.0)
            self._metrics.lease_token.set(self._lease.token)
            if age_ms <= self._max_stale_ms:
                self._observer.observe(time.monotonic(), self._watcher.workers)
            await self._watcher.polled()

    async def keep_planning(self) -> None:
        """Plan at every interval until cancelled; more often until there is something to plan."""
        while True:
            await self.plan_once()
            self._hurry.clear()
            with contextlib.suppress(TimeoutError):
                wait_s = self.interval_s if self.advisor.decisions else min(self.interval_s, _FIRST_PLAN_S)
                async with asyncio.timeout(wait_s):
                    await self._hurry.wait()

    def plan_soon(self) -> None:
        """Do not wait for the interval's end."""
        self._hurry.set()

    async def plan_once(self) -> None:
        """One round: plan, log what changed, publish. While Redis is away the last plan stays."""
        if self._watcher.stale_ms > self._max_stale_ms:
            return
        with self._metrics.planning_s.time():
            changed = self.advisor.decide(
                self._observer.observations(time.monotonic()),
                unix_ms=round(1000 * time.time()),
                lease_token=self._lease.token,
            )
        for decision in changed:
            self._metrics.decisions.inc()
            _log_decision(decision, acting=bool(self._lease.token) and not self.advisor.paused)
        self._metrics.show(self.advisor.decisions)
        await self._publish()

    async def _publish(self) -> None:
        """Write the plans for others to read, if this planner may act.

        The lease is renewed just before, so a holder that was asleep for longer than its lease finds out first; what it
        could still write in the moment between carries an id below the next holder's.
        """
        if self.advisor.paused or not self._lease.token:
            return
        try:
            if not await self._lease.keep():
                return
            for model, decision in self.advisor.decisions.items():
                await self._redis.set(self._keys.plan(model), decision.to_proto().SerializeToString())
        except (RedisError, OSError) as error:
            self._metrics.redis_errors.inc()
            _log.warning("plan not written: redis does not answer", error=type(error).__name__)


def _log_decision(decision: Decision, *, acting: bool) -> None:
    proposal = decision.proposal
    if not proposal.confident:
        advice = f"keep {proposal.current} for lack of data"
    elif proposal.desired == proposal.current:
        advice = f"keep {proposal.current}"
    else:
        advice = f"would change {proposal.current} to {proposal.desired}"
    _log.info(
        f"{advice}: {proposal.reason}",
        model=proposal.model,
        decision=decision.id,
        advisory=True,
        standby=not acting,
    )
