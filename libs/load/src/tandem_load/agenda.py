"""What is to be sent, and when."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from tandem_load.conversation import Asker, Conversation
from tandem_load.load_task import Arrivals, Clients, LoadTask, Replay
from tandem_load.traces import load_trace


class Entry(NamedTuple):
    """A turn of a conversation; `due_s` is when it is to be sent."""

    due_s: float
    number: int
    conversation: Conversation
    is_arrival: bool


class Agenda:
    """Turns in the order in which they are due. Times are seconds since the window began, negative in the warm-up.

    `window_s` is the window's end: the task's duration, or where the traffic ended, infinite as long as that is open.
    Nothing is due after it.
    """

    def __init__(self, task: LoadTask, asker: Asker) -> None:
        self.window_s = math.inf if task.duration_s is None else task.duration_s
        self._task = task
        self._asker = asker
        self._heap: list[Entry] = []
        self._num_planned = 0
        self._num_taken = 0  # within the window
        self._last_due_s = 0.0
        self._is_full = False
        self._arrivals: Iterator[tuple[float, Conversation]] = iter(())
        match task.traffic:
            case Clients(count=count):
                for _ in range(count):
                    self._plan(-task.warmup_s, asker.conversation(task.shape))
            case Arrivals() as traffic:
                self._arrivals = _poisson(traffic, task, asker)
            case Replay() as replay:
                self._arrivals = _replayed(replay, asker)
        self._plan_arrival()

    @property
    def next_due_s(self) -> float | None:
        """When something is due next; None: when an answer has come, or never."""
        return self._heap[0].due_s if self._heap else None

    def take(self, now_s: float) -> Entry | None:
        """What is due by now, one turn a call, the earliest first."""
        if not self._heap or self._heap[0].due_s > now_s:
            return None
        entry = heapq.heappop(self._heap)
        if entry.due_s >= 0.0:
            self._num_taken += 1
            self._last_due_s = max(self._last_due_s, entry.due_s)
        if entry.is_arrival:
            self._plan_arrival()
        if self._num_taken == self._task.max_requests:
            self._end()
        return entry

    def on_answered(self, conversation: Conversation, now_s: float) -> None:
        """An answer was complete: its conversation goes on, or a client of a closed loop begins another one."""
        if conversation.has_next:
            self._plan(now_s + conversation.think_s, conversation)
        else:
            self._plan_follower(now_s)

    def on_failed(self, again_s: float) -> None:
        """An answer is missing, so its conversation is over; a client of a closed loop begins another one then."""
        self._plan_follower(again_s)

    def _plan_follower(self, due_s: float) -> None:
        if isinstance(self._task.traffic, Clients):
            self._plan(due_s, self._asker.conversation(self._task.shape))

    def _plan_arrival(self) -> None:
        found = next(self._arrivals, None)
        if found is not None:
            self._plan(found[0] - self._task.warmup_s, found[1], is_arrival=True)
        elif isinstance(self._task.traffic, Replay) and self._num_taken > 1 and self._last_due_s > 0.0:
            # The gap after the last arrival is taken to be as long as the mean of those between.
            self.window_s = min(self.window_s, self._last_due_s * self._num_taken / (self._num_taken - 1))

    def _plan(self, due_s: float, conversation: Conversation, *, is_arrival: bool = False) -> None:
        if due_s < self.window_s and not self._is_full:
            self._num_planned += 1
            heapq.heappush(self._heap, Entry(due_s, self._num_planned, conversation, is_arrival))

    def _end(self) -> None:
        """As many as were wanted are on their way; an open loop's window ends where the next would have arrived."""
        next_s = min((entry.due_s for entry in self._heap if entry.is_arrival), default=math.inf)
        self.window_s = min(self.window_s, next_s)
        self._heap.clear()
        self._is_full = True


def _poisson(traffic: Arrivals, task: LoadTask, asker: Asker) -> Iterator[tuple[float, Conversation]]:
    draw = random.Random(f"{task.seed} arrivals")
    # The rate is one of requests, and each conversation makes several.
    rate = traffic.rate / task.shape.num_turns
    time_s = 0.0
    while True:
        time_s += 1.0 / rate if traffic.evenly else draw.expovariate(rate)
        yield time_s, asker.conversation(task.shape)


def _replayed(traffic: Replay, asker: Asker) -> Iterator[tuple[float, Conversation]]:
    scale = traffic.length_scale
    for request in load_trace(Path(traffic.path)):
        scaled = replace(
            request,
            num_prompt_tokens=max(1, round(request.num_prompt_tokens * scale)),
            num_output_tokens=max(1, round(request.num_output_tokens * scale)),
            segment_tokens=max(1, round(request.segment_tokens * scale)),
        )
        yield request.time_s / traffic.speed, asker.replayed(scaled)
