"""One request of a session, from its submission to its end."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tandem.v1 import decode_pb2, generation_pb2, router_pb2
from tandem_common.errors import DeadlineExceeded, InternalError, TandemError
from tandem_common.generation import Generation
from tandem_common.logs import bound_request, get_logger
from tandem_common.telemetry import span
from tandem_engine.api import PrefillMode, PrefillProgress, TokenOutput
from tandem_worker.metrics import REMOTE_PREFILLS, REQUESTS

from tandem_decode.remote_prefill import NotWorthwhile, RemotePrefill

if TYPE_CHECKING:
    from tandem_decode.session import Session

_log = get_logger("decode")


class Stream:
    """Owns its request: in the engine, at the prefill worker, and in its session. Ends exactly once."""

    def __init__(self, session: Session, stream_id: int, generation: Generation, timeout_s: float) -> None:
        self._session = session
        self._outbox = session.outbox
        self._worker = session.worker
        self.stream_id = stream_id
        self.request_id = generation.request_id
        engine_id = self._worker.dispatcher.claim(self.request_id, self)
        self._worker.dispatcher.send_plain(engine_id, self._outbox, stream_id)
        if engine_id != self.request_id:
            generation = replace(generation, request_id=engine_id)
        self._generation = generation
        self._ended = False
        self._handoff: asyncio.Task[None] | None = None
        self._prefill_worker_id = self._worker.worker_id
        self._expiry = asyncio.get_running_loop().call_later(
            timeout_s, self.on_failure, DeadlineExceeded(f"the request took more than {timeout_s:g} s")
        )

    def start(self, prefill: router_pb2.WorkerRef | None) -> None:
        """Have the prompt computed, by another worker or here."""
        self._worker.accepted.add(self.request_id, time.monotonic())
        if prefill is None or prefill.worker_id == self._worker.worker_id:
            self._worker.engine.submit(self._generation, PrefillMode.LOCAL)
        else:
            self._handoff = asyncio.create_task(self._hand_off(prefill), name="handoff")

    def on_tokens(self, output: TokenOutput) -> None:
        """Pass new tokens on, and the end."""
        if self._ended:
            return
        outbox = self._outbox
        if output.token_ids:
            outbox.add_tokens(self.stream_id, output.token_ids, output.logprobs)
        if output.num_cached_tokens is not None:
            started = decode_pb2.StreamStarted(
                num_cached_tokens=min(output.num_cached_tokens, self._generation.num_prompt_tokens),
                prefill_worker_id=self._prefill_worker_id,
            )
            outbox.add_event(decode_pb2.StreamEvent(stream_id=self.stream_id, started=started))
        if output.finish_reason is not None:
            finished = decode_pb2.StreamFinished(
                reason=generation_pb2.FinishReason.ValueType(output.finish_reason.value),
                stop_token_id=output.stop_token_id,
            )
            self._end("finished", decode_pb2.StreamEvent(stream_id=self.stream_id, finished=finished))

    def on_progress(self, progress: PrefillProgress) -> None:
        """Only held prompts report progress; ours are not."""

    def on_failure(self, error: TandemError) -> None:
        """End with an error; the session says it with its next message."""
        failed = decode_pb2.StreamError(
            code=error.code.value[0],
            message=error.message,
            retryable=error.retryable,
            retry_after_ms=error.retry_after_ms,
        )
        self._end("failed", decode_pb2.StreamEvent(stream_id=self.stream_id, error=failed))
        self._session.flush()

    def cancel(self) -> None:
        """The frontend does not want it any more."""
        finished = decode_pb2.StreamFinished(reason=generation_pb2.FINISH_REASON_CANCELLED)
        self._end("cancelled", decode_pb2.StreamEvent(stream_id=self.stream_id, finished=finished))

    def _end(self, outcome: str, event: decode_pb2.StreamEvent) -> None:
        if self._ended:
            return
        self._ended = True
        self._expiry.cancel()
        self._outbox.add_event(event)
        self._session.forget(self)
        if self._handoff is None:
            self._worker.dispatcher.release(self._generation.request_id)
        else:
            self._worker.dispatcher.stop_plain(self._generation.request_id)
            # Blocks may be on their way: the engine's request goes when none is written any more.
            self._handoff.cancel()
        REQUESTS.labels(outcome).inc()
        _log.info(
            "request ended",
            request_id=self.request_id,
            outcome=outcome,
            num_prompt_tokens=self._generation.num_prompt_tokens,
            prefill_worker_id=self._prefill_worker_id,
        )

    async def _hand_off(self, prefill: router_pb2.WorkerRef) -> None:
        """Try the prefill worker; whatever goes wrong, compute here."""
        try:
            with bound_request(self.request_id), span("handoff", self._generation.traceparent):
                if not await self._prefill_elsewhere(prefill) and not self._ended:
                    self._worker.engine.cancel(self._generation.request_id)
                    self._worker.engine.submit(self._generation, PrefillMode.LOCAL)
        except Exception:  # noqa: BLE001 - a defect of ours; the request must end all the same
            _log.exception("a handoff failed in an unexpected way", request_id=self.request_id)
            self.on_failure(InternalError("internal error"))
        finally:
            self._handoff = None
            if self._ended:
                self._worker.dispatcher.release(self._generation.request_id)

    async def _prefill_elsewhere(self, prefill: router_pb2.WorkerRef) -> bool:
        """Whether the sequence decodes now from blocks that another worker computed."""
        card = await self._worker.find_peer(prefill.worker_id, prefill.epoch)
        if card is None:
            _log.warning("prefilling here: the prefill worker is not registered", peer=prefill.worker_id)
            REMOTE_PREFILLS.labels("fell_back").inc()
            return False
        self._prefill_worker_id = card.worker_id
        handoff = RemotePrefill(
            worker=self._worker,
            channels=self._session.channels,
            request_id=self.request_id,
            generation=self._generation,
            prefill=card,
        )
        try:
            await handoff.run()
        except NotWorthwhile:
            pass
        except (TandemError, TimeoutError) as error:
            reason = error.message if isinstance(error, TandemError) else "it took too long"
            _log.warning("prefilling here: the remote prefill failed", peer=card.worker_id, error=reason)
            REMOTE_PREFILLS.labels("fell_back").inc()
        else:
            REMOTE_PREFILLS.labels("done").inc()
            return True
        self._prefill_worker_id = self._worker.worker_id
        return False
