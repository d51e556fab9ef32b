"""Runs prepared requests, with the log lines, metrics and usage that belong to each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from tandem_common.errors import TandemError
from tandem_common.generation import FinishReason, Generation
from tandem_common.logs import bound_request, get_logger

from tandem_frontend.detokenizer import Detokenizer
from tandem_frontend.frontend_metrics import FrontendMetrics
from tandem_frontend.generation_run import Backend, GenerationRun
from tandem_frontend.open_requests import OpenRequests
from tandem_frontend.preparation import PreparedRequest
from tandem_frontend.text_stream import DeltaSink, TextStream
from tandem_frontend.token_bytes import TokenBytes

_log = get_logger("requests")


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one or more answers."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Completion:
    """How an answer ended; its text and tokens went to the sink."""

    reason: FinishReason
    stop: str | None  # the stop string that ended it, if one did
    usage: Usage


class Generator:
    """The one way to generate, for HTTP, gRPC and the canary."""

    def __init__(
        self, backend: Backend, token_bytes: TokenBytes, metrics: FrontendMetrics, open_requests: OpenRequests
    ) -> None:
        self._backend = backend
        self._token_bytes = token_bytes
        self._metrics = metrics
        self._open = open_requests
        self.last_success_at: float | None = None  # monotonic seconds

    async def generate(
        self, request: PreparedRequest, sink: DeltaSink, *, canary: bool = False
    ) -> Completion:
        """Generate to the end; raises TandemError. Cancelling stops the worker within a token.

        A `canary` is no client's request: it is logged for debugging only and is not in the metrics.
        """
        generation = request.generation
        started_at = time.monotonic()
        text = TextStream(
            Detokenizer(self._token_bytes, continues_text=request.continues_text),
            request.stop,
            sink,
            min_tokens=generation.stopping.min_tokens,
        )
        run = GenerationRun(request, text, self._backend)
        outcome = "cancelled"
        with self._open.admit(), bound_request(generation.request_id):
            _log.debug("request started", num_prompt_tokens=generation.num_prompt_tokens)
            try:
                reason = await run.run()
                outcome = reason.name.lower()
            except TandemError as error:
                outcome = error.code.name.lower()
                raise
            except Exception:
                outcome = "internal"
                raise
            finally:
                log = _log.debug if canary else _log.info
                self._report(generation, run, text, outcome, started_at, log)
                if not canary:
                    self._count(generation.num_prompt_tokens, run, text, started_at)
        self.last_success_at = time.monotonic()
        return Completion(
            reason=reason,
            stop=text.stop,
            usage=Usage(
                prompt_tokens=generation.num_prompt_tokens,
                completion_tokens=text.num_tokens,
                cached_tokens=run.num_cached_tokens,
            ),
        )

    def _report(
        self,
        generation: Generation,
        run: GenerationRun,
        text: TextStream,
        outcome: str,
        started_at: float,
        log: Callable[..., None],
    ) -> None:
        """The one line of a request."""
        log(
            "request ended",
            model=generation.model,
            request_class=generation.request_class.name.lower(),
            num_prompt_tokens=generation.num_prompt_tokens,
            max_tokens=generation.stopping.max_tokens,
            status=outcome,
            num_output_tokens=text.num_tokens,
            num_cached_tokens=run.num_cached_tokens,
            ttft_ms=None if run.times.first_at is None else _ms(run.times.first_at - started_at),
            total_ms=_ms(time.monotonic() - started_at),
            num_migrations=run.num_migrations,
            decode_worker_ids=run.decode_worker_ids,
            prefill_worker_id=run.prefill_worker_id,
        )

    def _count(self, num_prompt_tokens: int, run: GenerationRun, text: TextStream, started_at: float) -> None:
        if run.times.first_at is not None:
            self._metrics.ttft_s.observe(run.times.first_at - started_at)
        self._metrics.prompt_tokens.inc(num_prompt_tokens)
        self._metrics.cached_tokens.inc(run.num_cached_tokens)
        self._metrics.output_tokens.inc(text.num_tokens)
        self._metrics.migrations.inc(run.num_migrations)


def _ms(seconds: float) -> float:
    return round(1000 * seconds, 1)
