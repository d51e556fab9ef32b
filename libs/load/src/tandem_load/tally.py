"""Counting what happens while load is made."""

from __future__ import annotations

import math

from tandem_load.exchange import Exchange
from tandem_load.failures import Failure, FailureCount
from tandem_load.load_task import LatencyTargets
from tandem_load.measured import Measured, Slice

_MAX_SLICES = 240


class Tally:
    """Fills a `Measured`. Times are seconds since the window began; what is before, the warm-up, is not counted.

    A request belongs to the window when it was *to be* sent in it, and its latencies count from then: what waits
    because the server, or this client, is slow is not left out.
    """

    def __init__(self, targets: LatencyTargets, window_s: float | None) -> None:
        """Without a window's length the window is open until `close`."""
        self.measured = Measured(
            window_s=math.inf if window_s is None else window_s, slice_s=_nice_slice(window_s or 0.0)
        )
        self._targets = targets

    def on_sent(self, due_s: float, now_s: float, num_in_flight: int) -> None:
        """A request went out."""
        if not self.counts(due_s):
            return
        self.measured.num_sent += 1
        self.measured.lag.add(max(0.0, now_s - due_s))
        piece = self._slice(due_s)
        piece.num_sent += 1
        piece.most_in_flight = max(piece.most_in_flight, num_in_flight)

    def on_text(self, now_s: float, num_events: int) -> None:
        """Events with text were read, of any request."""
        if now_s >= 0.0:
            self.measured.num_cpu_events += num_events
            if self.counts(now_s):
                self.measured.num_window_events += num_events
            self._slice(now_s).num_text_events += num_events

    def on_done(self, due_s: float, begin_s: float, exchange: Exchange) -> None:
        """An answer is complete; `begin_s` is when the window began on the exchange's clock."""
        if not self.counts(due_s):
            return
        assert exchange.first_token_s is not None
        measured, answer = self.measured, exchange.answer
        ttft_s = exchange.first_token_s - begin_s - due_s
        e2e_s = exchange.last_token_s - begin_s - due_s
        tpot_s = (e2e_s - ttft_s) / (answer.num_tokens - 1) if answer.num_tokens > 1 else None
        measured.num_done += 1
        measured.ttft.add(ttft_s)
        measured.e2e.add(e2e_s)
        if tpot_s is not None:
            measured.tpot.add(tpot_s)
        piece = self._slice(max(0.0, exchange.first_token_s - begin_s))
        piece.num_first_tokens += 1
        piece.ttft_sum_s += ttft_s
        measured.answer_tokens.add(answer.num_tokens)
        measured.num_answer_events += answer.num_text_events
        measured.num_without_usage += answer.num_usage_tokens is None
        measured.num_cached_tokens += answer.num_cached_tokens or 0
        if answer.num_prompt_tokens is not None:
            measured.prompt_tokens.add(answer.num_prompt_tokens)
        targets = self._targets
        missed = [
            name
            for name, value, target in (
                ("ttft", ttft_s, targets.ttft_s),
                ("tpot", tpot_s, targets.tpot_s),
                ("itl", exchange.longest_gap_s, targets.itl_s),
                ("e2e", e2e_s, targets.e2e_s),
            )
            if value is not None and target is not None and value > target
        ]
        for name in missed:
            measured.missed[name] += 1
        measured.num_good += not missed

    def on_gaps(self, due_s: float, gaps_s: list[float]) -> None:
        """Gaps between the tokens of a request, as they are read: a long answer is not kept."""
        if gaps_s and self.counts(due_s):
            self.measured.itl.add_all(gaps_s)

    def on_failed(self, due_s: float, now_s: float, failure: Failure) -> None:
        """A request failed, for good."""
        if self.counts(due_s):
            self.measured.failures.setdefault(failure.kind, FailureCount()).add(failure)
            self._slice(max(0.0, now_s)).num_failed += 1

    def counts(self, time_s: float) -> bool:
        """Whether what was to happen then is measured."""
        return 0.0 <= time_s < self.measured.window_s

    def close(self, now_s: float) -> None:
        """The window ends now, if it has not ended yet: nothing more is to be sent."""
        self.measured.window_s = max(0.0, min(self.measured.window_s, now_s))

    def _slice(self, time_s: float) -> Slice:
        measured = self.measured
        while time_s >= measured.slice_s * _MAX_SLICES:
            measured.slice_s *= 2
            measured.slices = [_joined(measured.slices[i : i + 2]) for i in range(0, len(measured.slices), 2)]
        index = int(time_s / measured.slice_s)
        while len(measured.slices) <= index:
            measured.slices.append(Slice())
        return measured.slices[index]


def _joined(pieces: list[Slice]) -> Slice:
    return Slice(
        num_sent=sum(piece.num_sent for piece in pieces),
        num_failed=sum(piece.num_failed for piece in pieces),
        num_text_events=sum(piece.num_text_events for piece in pieces),
        most_in_flight=max(piece.most_in_flight for piece in pieces),
        num_first_tokens=sum(piece.num_first_tokens for piece in pieces),
        ttft_sum_s=sum(piece.ttft_sum_s for piece in pieces),
    )


def _nice_slice(window_s: float) -> float:
    """About fifty slices, a quarter of a second at least."""
    slice_s = 0.25
    while slice_s * 50 < window_s:
        slice_s *= 2
    return slice_s
