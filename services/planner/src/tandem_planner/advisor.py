"""The planner's state: targets, the plans that hold now, and those who wait for the next."""

from __future__ import annotations

import asyncio
import dataclasses
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence

from tandem_planner.decision import Decision, first_id_under
from tandem_planner.hysteresis import Steady
from tandem_planner.observations import Observations
from tandem_planner.plan import Policy, plan
from tandem_planner.targets import Targets

# Decisions that a slow watcher may be behind.
_MAX_RECENT = 256


class Advisor:
    """Makes plans and remembers them. Time and observations come from outside; only `watch` waits."""

    def __init__(self, targets: Targets, policy: Policy, *, num_to_switch: int, num_to_fall: int) -> None:
        self.targets = targets
        self.paused = False
        self._policy = policy
        self._num_to_switch = num_to_switch
        self._num_to_fall = num_to_fall
        self._steady: dict[str, Steady] = {}
        self._latest: dict[str, Decision] = {}
        self._recent: deque[Decision] = deque(maxlen=_MAX_RECENT)
        self._last_id = 0
        self._closed = False
        self._changed = asyncio.Event()

    @property
    def decisions(self) -> Mapping[str, Decision]:
        """The plan that holds now, by model."""
        return self._latest

    def decide(self, seen: Sequence[Observations], *, unix_ms: int, lease_token: int) -> list[Decision]:
        """Plan for every model seen and forget the others; returns the decisions that differ from the last ones.

        A plan that says the same keeps its id and time, and gets the new figures.
        """
        models = {observations.model for observations in seen}
        self._steady = {model: steady for model, steady in self._steady.items() if model in models}
        self._latest = {model: decision for model, decision in self._latest.items() if model in models}
        changed = []
        for observations in seen:
            proposal = self._steady_of(observations.model).steadied(
                plan(observations, self.targets, self._policy)
            )
            before = self._latest.get(observations.model)
            if before is not None and before.says_the_same_as(proposal):
                self._latest[observations.model] = dataclasses.replace(before, proposal=proposal)
                continue
            self._last_id = max(self._last_id + 1, first_id_under(lease_token))
            decision = Decision(id=self._last_id, unix_ms=unix_ms, proposal=proposal)
            self._latest[observations.model] = decision
            self._recent.append(decision)
            changed.append(decision)
        if changed:
            self._wake()
        return changed

    def set_targets(self, targets: Targets) -> None:
        """Plan for other targets from now on; advice held for the old ones is dropped."""
        if targets != self.targets:
            self.targets = targets
            self._steady.clear()

    async def watch(self) -> AsyncIterator[Decision]:
        """The latest decision of every model, then each new one, until `close`."""
        last_id = 0
        for decision in sorted(self._latest.values(), key=lambda decision: decision.id):
            yield decision
            last_id = max(last_id, decision.id)
        while not self._closed:
            waiting = self._changed
            pending = [decision for decision in self._recent if decision.id > last_id]
            for decision in pending:
                yield decision
                last_id = decision.id
            if not pending:
                await waiting.wait()

    def close(self) -> None:
        """End all watches."""
        self._closed = True
        self._wake()

    def _steady_of(self, model: str) -> Steady:
        return self._steady.setdefault(
            model, Steady(num_to_switch=self._num_to_switch, num_to_fall=self._num_to_fall)
        )

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
