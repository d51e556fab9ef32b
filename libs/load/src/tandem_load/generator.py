"""The load generator: one thread, one loop over all connections.

It runs in a process of its own (`python -m tandem_load`), so that nothing else delays what it measures and so that its
processor time is its cost.
"""

from __future__ import annotations

import errno
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tandem_load.agenda import Agenda, Entry
from tandem_load.connection import READ, Connection, Connector
from tandem_load.conversation import Asker
from tandem_load.exchange import Exchange
from tandem_load.failures import Failure
from tandem_load.load_task import LoadTask
from tandem_load.measured import Measured
from tandem_load.pool import ConnectionPool
from tandem_load.tally import Tally

# Sockets are looked at no more often than this: on a busy machine a wake-up costs more than reading a dozen tokens, and
# the cores may be needed by the server. Times are late by so much at most.
READ_INTERVAL_S = 0.0005
# A closed loop's client that was not served waits before it asks again: one that spins would measure nothing.
_LEAST_PAUSE_S = 0.1
_MOST_PAUSE_S = 5.0
_MOST_TOLD_PAUSE_S = 60.0  # by Retry-After
_MOST_WAIT_S = 0.1  # for events; bounds how late an interrupt is seen
_MOST_GAPS = 256  # kept with a request


@dataclass(slots=True, eq=False, kw_only=True)
class _Running:
    """One request on its way."""

    entry: Entry
    request: bytes
    exchange: Exchange
    connection: Connection = field(init=False)
    was_sent_again: bool = False


class Generator:
    """Does one task. Times are seconds since the window began: before 0 the server is warmed up."""

    def __init__(
        self, task: LoadTask, connector: Connector, report: Callable[[Tally, float, int], None]
    ) -> None:
        """`report` is called now and then with the tally, the time and the number of requests on their way."""
        self._task = task
        self._report = report
        self._agenda = Agenda(task, Asker(task.dialect, task.seed))
        self._tally = Tally(task.targets, task.duration_s)
        self._pool = ConnectionPool(connector)
        self._running: dict[int, _Running] = {}  # by their connections' descriptors
        self._num_failed_in_row = 0
        self._num_new_events = 0
        self._is_stopped = False
        self._begin_s = 0.0  # of the window, on CLOCK_MONOTONIC

    def stop(self) -> None:
        """End early: send nothing more and wait for nothing. May be called from a signal handler."""
        self._is_stopped = True

    def run(self) -> Measured:
        """Send everything and wait for every answer."""
        self._begin_s = time.monotonic() + self._task.warmup_s
        cpu_from_s: float | None = None
        next_report_s = read_at_s = -self._task.warmup_s
        while not self._is_stopped:
            self._send_due(self._now_s())
            if not self._running and self._agenda.next_due_s is None:
                break
            early_s = read_at_s + READ_INTERVAL_S - self._now_s()
            if early_s > 0:
                time.sleep(min(early_s, self._wait_s()))
            for descriptor, happened in self._pool.wait(self._wait_s()):
                running = self._running.get(descriptor)
                if running is None:
                    self._pool.on_idle(descriptor)
                else:
                    self._on_event(running, happened)
            now_s = read_at_s = self._now_s()
            if self._num_new_events:
                self._tally.on_text(now_s, self._num_new_events)
                self._num_new_events = 0
            if cpu_from_s is None and now_s >= 0.0:
                cpu_from_s = time.process_time()
            if now_s >= next_report_s:
                self._expire(now_s)
                self._report(self._tally, now_s, len(self._running))
                next_report_s = now_s + self._task.report_interval_s
        return self._finish(cpu_from_s)

    def _finish(self, cpu_from_s: float | None) -> Measured:
        tally, now_s = self._tally, self._now_s()
        measured = tally.measured
        if cpu_from_s is not None:
            measured.cpu_s = time.process_time() - cpu_from_s
        measured.num_connections = self._pool.num_opened
        measured.was_interrupted = self._is_stopped
        measured.num_unfinished = sum(tally.counts(running.entry.due_s) for running in self._running.values())
        tally.close(now_s if self._is_stopped or math.isinf(measured.window_s) else measured.window_s)
        self._pool.close()
        return measured

    def _now_s(self) -> float:
        return time.monotonic() - self._begin_s

    def _wait_s(self) -> float:
        due_s = self._agenda.next_due_s
        return _MOST_WAIT_S if due_s is None else max(0.0, min(_MOST_WAIT_S, due_s - self._now_s()))

    def _send_due(self, now_s: float) -> None:
        while (entry := self._agenda.take(now_s)) is not None:
            self._tally.close(self._agenda.window_s)
            ask = entry.conversation.next_ask()
            request = self._task.target.post(self._task.dialect.path, ask.body)
            now_s = self._now_s()
            self._tally.on_sent(entry.due_s, now_s, len(self._running) + 1)
            self._send(_Running(entry=entry, request=request, exchange=Exchange(keeps_text=ask.keeps_text)))

    def _send(self, running: _Running) -> None:
        try:
            running.connection = self._pool.send(running.request, on_new=running.was_sent_again)
        except OSError as error:
            self._on_failed(running, Failure(kind="cannot connect", message=_describe(error)))
        else:
            self._running[running.connection.descriptor] = running

    def _on_event(self, running: _Running, happened: int) -> None:
        connection, exchange = running.connection, running.exchange
        try:
            if happened != READ or not connection.is_open:
                connection.on_ready()
                self._pool.update(connection)
                if not connection.is_open:
                    return
            while (data := connection.receive()) is not None:
                if not data:
                    self._on_close(running, "the server closed the connection")
                    return
                self._num_new_events += exchange.feed(data, time.monotonic())
                if exchange.is_complete or exchange.failure is not None:
                    self._on_end(running)
                    return
                if not connection.may_have_more(data, happened):
                    break
        except OSError as error:
            self._on_close(running, _describe(error))
            return
        if len(exchange.gaps_s) > _MOST_GAPS:
            self._take_gaps(running)

    def _on_close(self, running: _Running, reason: str) -> None:
        """The connection ended before the answer did."""
        connection, exchange = running.connection, running.exchange
        if connection.num_requests > 1 and not exchange.has_begun and not running.was_sent_again:
            # The server closed an idle connection while the request was under way to it: HTTP wants it sent again.
            del self._running[connection.descriptor]
            self._pool.drop(connection)
            running.was_sent_again = True
            self._send(running)
            return
        if connection.is_open:
            exchange.on_close(reason)
        else:
            exchange.failure = Failure(kind="cannot connect", message=reason)
        self._on_end(running)

    def _on_end(self, running: _Running) -> None:
        connection, exchange, entry = running.connection, running.exchange, running.entry
        del self._running[connection.descriptor]
        if exchange.is_complete and exchange.keeps_alive and connection.is_idle:
            self._pool.release(connection)
        else:
            self._pool.drop(connection)
        self._take_gaps(running)
        exchange.release()
        if exchange.failure is not None:
            self._on_failed(running, exchange.failure)
            return
        self._num_failed_in_row = 0
        self._tally.on_done(entry.due_s, self._begin_s, exchange)
        if entry.conversation.has_next:
            entry.conversation.answered(exchange.answer.text())
        self._agenda.on_answered(entry.conversation, self._now_s())

    def _on_failed(self, running: _Running, failure: Failure) -> None:
        now_s = self._now_s()
        self._tally.on_failed(running.entry.due_s, now_s, failure)
        if failure.retry_after_s is not None:
            pause_s = min(_MOST_TOLD_PAUSE_S, failure.retry_after_s)
        else:
            pause_s = min(_MOST_PAUSE_S, _LEAST_PAUSE_S * 2 ** min(10, self._num_failed_in_row))
        self._num_failed_in_row += 1
        self._agenda.on_failed(now_s + pause_s)

    def _take_gaps(self, running: _Running) -> None:
        self._tally.on_gaps(running.entry.due_s, running.exchange.gaps_s)
        running.exchange.gaps_s.clear()

    def _expire(self, now_s: float) -> None:
        timeout_s = self._task.timeout_s
        late = [running for running in self._running.values() if now_s - running.entry.due_s > timeout_s]
        for running in late:
            running.exchange.failure = Failure(kind="timed out", message=f"no end after {timeout_s:g} s")
            self._on_end(running)


def _describe(error: OSError) -> str:
    if error.errno == errno.EMFILE:
        return "this process may not open more files: raise its limit (ulimit -n)"
    return (error.strerror or str(error)).lower()
