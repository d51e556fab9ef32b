"""From the engine's steps to the owners of the requests; plain tokens, as nearly all are, go to sinks by the column."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol, cast

from tandem_common.errors import InternalError, TandemError
from tandem_common.logs import get_logger
from tandem_engine.api import Engine, PrefillProgress, StepOutput, TokenOutput

from tandem_worker.metrics import ACTIVE, TOKENS

_log = get_logger("dispatch")


class RequestOwner(Protocol):
    """Who is told what becomes of a request. Called from the event loop; must not block or await."""

    def on_tokens(self, output: TokenOutput) -> None:
        """New tokens that are not plain, and perhaps the end."""
        ...

    def on_progress(self, progress: PrefillProgress) -> None:
        """A held prompt has come further."""
        ...

    def on_failure(self, error: TandemError) -> None:
        """The engine gave the request up, or this worker must: end it and say so."""
        ...


class PlainSink(Protocol):
    """What takes the plain tokens of many requests: see StepOutput. Must not raise."""

    def add_plain(self, stream_ids: Sequence[int], token_ids: Sequence[int]) -> None:
        """One new token each for these streams."""
        ...


class Dispatcher:
    """All requests of one worker and their owners."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._owners: dict[str, RequestOwner] = {}
        # By sink, and by request in it: the stream ids.
        self._streams: dict[PlainSink, dict[str, int]] = {}
        self._sinks: dict[str, PlainSink] = {}
        self._after_step: dict[object, Callable[[], None]] = {}
        self._num_claimed = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def __len__(self) -> int:
        return len(self._owners)

    @property
    def request_ids(self) -> list[str]:
        """Requests that have an owner."""
        return list(self._owners)

    def claim(self, request_id: str, owner: RequestOwner) -> str:
        """Enter a request; returns the id to use with the engine.

        It is another id when the same request is here already (its frontend has given up an earlier try that is still
        being ended), so that no output of the one can reach the other.
        """
        self._num_claimed += 1
        engine_id = request_id if request_id not in self._owners else f"{request_id}.{self._num_claimed}"
        self._owners[engine_id] = owner
        self._idle.clear()
        ACTIVE.set(len(self._owners))
        return engine_id

    def send_plain(self, engine_id: str, sink: PlainSink, stream_id: int) -> None:
        """Have the request's plain tokens put into `sink`; an owner that gets none need not say so."""
        self._sinks[engine_id] = sink
        self._streams.setdefault(sink, {})[engine_id] = stream_id

    def stop_plain(self, engine_id: str) -> None:
        """Drop its plain tokens from now on. Idempotent."""
        sink = self._sinks.pop(engine_id, None)
        if sink is not None:
            streams = self._streams[sink]
            del streams[engine_id]
            if not streams:
                del self._streams[sink]

    def release(self, engine_id: str) -> None:
        """Forget a request and free what the engine holds of it. Idempotent."""
        if self._owners.pop(engine_id, None) is None:
            return
        self.stop_plain(engine_id)
        self._engine.cancel(engine_id)
        ACTIVE.set(len(self._owners))
        if not self._owners:
            self._idle.set()

    def add_after_step(self, key: object, call: Callable[[], None]) -> None:
        """Have `call` called after the outputs of each step."""
        self._after_step[key] = call

    def remove_after_step(self, key: object) -> None:
        """Idempotent."""
        self._after_step.pop(key, None)

    async def run(self, observe: Callable[[StepOutput], None]) -> None:
        """Deliver steps until the engine stops; raises EngineDied."""

        def take(step: StepOutput) -> None:
            self.deliver(step)
            observe(step)

        await self._engine.deliver(take)

    def deliver(self, step: StepOutput) -> None:
        """Hand one step's outputs to their owners. A request whose owner is at fault is ended alone."""
        owners = self._owners
        num_tokens = len(step.plain_token_ids)
        if num_tokens:
            self._deliver_plain(step.plain_request_ids, step.plain_token_ids)
        for progress in step.progress:
            if owner := owners.get(progress.request_id):
                try:
                    owner.on_progress(progress)
                except Exception:  # noqa: BLE001 - the others must get theirs
                    self._give_up(progress.request_id, owner)
        for output in step.tokens:
            if owner := owners.get(output.request_id):
                try:
                    owner.on_tokens(output)
                except Exception:  # noqa: BLE001
                    self._give_up(output.request_id, owner)
                num_tokens += len(output.token_ids)
        for failure in step.failures:
            if owner := owners.get(failure.request_id):
                owner.on_failure(failure.error)
        TOKENS.inc(num_tokens)
        self._call_after_step()

    def _deliver_plain(self, request_ids: Sequence[str], token_ids: Sequence[int]) -> None:
        num_sent = 0
        for sink, streams in self._streams.items():
            stream_ids = list(map(streams.get, request_ids))
            if None not in stream_ids:
                sink.add_plain(cast("list[int]", stream_ids), token_ids)
                return
            tokens = [token_ids[row] for row, stream_id in enumerate(stream_ids) if stream_id is not None]
            if tokens:
                sink.add_plain([stream_id for stream_id in stream_ids if stream_id is not None], tokens)
                num_sent += len(tokens)
                if num_sent == len(token_ids):
                    return

    def fail_all(self, error: TandemError) -> int:
        """End every request with `error`; returns how many there were."""
        remaining = list(self._owners.values())
        for owner in remaining:
            owner.on_failure(error)
        self._call_after_step()
        return len(remaining)

    async def idle(self) -> None:
        """Return when no request is here."""
        await self._idle.wait()

    def _call_after_step(self) -> None:
        for call in list(self._after_step.values()):
            call()

    def _give_up(self, engine_id: str, owner: RequestOwner) -> None:
        _log.exception("delivering an output failed", request_id=engine_id)
        owner.on_failure(InternalError("internal error"))
