"""Keeps advice from flapping: a proposal counts when it was made several times in a row."""

from __future__ import annotations

import dataclasses

from tandem_planner.plan import Proposal
from tandem_planner.split import Split


class Steady:
    """Turns one model's raw proposals into advice that holds.

    Two things are held separately. A new division of the workers must be proposed `num_to_switch` times in a row. The
    number of workers needed may rise at once, and falls only after `num_to_fall` proposals in a row that need fewer,
    to the most that any of them needed.
    """

    def __init__(self, *, num_to_switch: int, num_to_fall: int) -> None:
        self._num_to_switch = num_to_switch
        self._num_to_fall = num_to_fall
        self._current: Split | None = None
        self._desired: Split | None = None
        self._candidate: Split | None = None
        self._num_candidate = 0
        self._smallest: Split | None = None
        self._lower: list[Split] = []

    def steadied(self, proposal: Proposal) -> Proposal:
        """The advice after `proposal`. What is not confident is passed on and forgets nothing."""
        if not proposal.confident:
            return proposal
        if proposal.current != self._current:
            # The workers changed: advice about other workers is void.
            self._current, self._desired = proposal.current, proposal.current
            self._candidate, self._num_candidate = None, 0
        self._hold_desired(proposal.desired)
        self._hold_smallest(proposal.smallest)
        desired = self._desired or proposal.current
        reason = proposal.reason
        if desired != proposal.desired:
            reason = f"{reason} (advice stays {desired} until that holds)"
        figures = dict(proposal.figures)
        if self._smallest is not None:
            figures["needed_num_prefill"] = float(self._smallest.num_prefill)
            figures["needed_num_decode"] = float(self._smallest.num_decode)
            figures["needed_num_both"] = float(self._smallest.num_both)
        return dataclasses.replace(
            proposal, desired=desired, smallest=self._smallest, reason=reason, figures=figures
        )

    def _hold_desired(self, desired: Split) -> None:
        if desired == self._desired:
            self._candidate, self._num_candidate = None, 0
            return
        self._num_candidate = self._num_candidate + 1 if desired == self._candidate else 1
        self._candidate = desired
        if self._num_candidate >= self._num_to_switch:
            self._desired, self._candidate, self._num_candidate = desired, None, 0

    def _hold_smallest(self, smallest: Split | None) -> None:
        held = self._smallest
        if smallest is None or held is None:
            self._smallest, self._lower = smallest, []
            return
        if smallest == held:
            self._lower = []
            return
        self._lower = [*self._lower, smallest][-self._num_to_fall :]
        risen = _each_at_least(held, smallest)
        if risen != held:
            self._smallest, self._lower = risen, []
        elif len(self._lower) >= self._num_to_fall:
            fallen = self._lower[0]
            for split in self._lower:
                fallen = _each_at_least(fallen, split)
            self._smallest, self._lower = fallen, []


def _each_at_least(one: Split, other: Split) -> Split:
    return Split(
        num_prefill=max(one.num_prefill, other.num_prefill),
        num_decode=max(one.num_decode, other.num_decode),
        num_both=max(one.num_both, other.num_both),
    )
