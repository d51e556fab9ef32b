"""The life of a request, as frontend, decode worker and prefill worker live it together (docs/architecture.md).

Route → submit (or reserve, prefill elsewhere, ship block by block, activate) → tokens → end; and what happens when a
worker dies in between. Every call takes `rpc_s`; what arrives for an attempt that was given up is ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tandem.v1 import generation_pb2
from tandem.v1 import router_pb2 as pb
from tandem_common.errors import Overloaded, TandemError
from tandem_common.generation import Generation, RequestClass, SamplingParams, StoppingParams
from tandem_common.hashing import block_hashes
from tandem_engine.api import FirstToken, PrefillMode, PrefillProgress, StepOutput, TokenOutput
from tandem_load.histogram import LogHistogram
from tandem_load.traffic import TrafficRequest
from tandem_router.desk import Started

from tandem_sim.control_plane import ControlPlane
from tandem_sim.drain_watch import DrainWatch
from tandem_sim.event_loop import EventLoop
from tandem_sim.measurement import Measurement, RequestRecord
from tandem_sim.network import TIERS, Links, NetworkTier
from tandem_sim.routers import Router
from tandem_sim.scenario import Scenario
from tandem_sim.worker import Worker

_MAX_ATTEMPTS = 5
# Smaller chunks tell a worker nothing about the rate of a link.
_SMALL_CHUNK_BYTES = 64 << 10
_CLASSES = (generation_pb2.REQUEST_CLASS_INTERACTIVE, generation_pb2.REQUEST_CLASS_BATCH)


@dataclass(slots=True, kw_only=True)
class _Live:
    """A request that is not over."""

    request_id: str
    traffic: TrafficRequest
    record: RequestRecord
    gaps: LogHistogram
    prompt: list[int]
    router: Router
    number: int  # of its arrival
    routed_s: float = 0.0
    attempt: int = 0
    excluded: set[str] = field(default_factory=set)
    decode: Worker | None = None
    prefill: Worker | None = None  # None: the decode worker computes the prompt
    num_shipped_blocks: int = 0
    arrived_s: float = 0.0  # of the last chunk that was shipped


class RequestFlow:
    """All requests; hears of everything that the engines make known."""

    def __init__(
        self,
        scenario: Scenario,
        loop: EventLoop,
        control_plane: ControlPlane,
        measurement: Measurement,
    ) -> None:
        self._scenario = scenario
        self._loop = loop
        self._control_plane = control_plane
        self._measurement = measurement
        self._drain = DrainWatch()
        self._workers: Mapping[str, Worker] = {}
        self._links = Links()
        self._live: dict[str, _Live] = {}
        self._namespace = bytes(16)
        self.num_over = 0

    def start(self, workers: Mapping[str, Worker]) -> None:
        """Know the workers, before the first request."""
        self._workers = workers

    def arrive(self, traffic: TrafficRequest) -> None:
        """A client sends a request."""
        record = RequestRecord(
            index=traffic.index,
            label=traffic.label,
            num_prompt_tokens=traffic.num_prompt_tokens,
            num_output_tokens=traffic.num_output_tokens,
            sent_s=self._loop.now_s,
            tenant=traffic.tenant,
            is_batch=traffic.is_batch,
        )
        self._measurement.records.append(record)
        live = _Live(
            request_id=f"req-{self._scenario.seed:x}-{traffic.index:08x}",
            traffic=traffic,
            record=record,
            gaps=self._measurement.gaps.setdefault(traffic.label, LogHistogram()),
            prompt=traffic.token_ids(),
            router=self._router_of(traffic),
            number=self._drain.arrived(),
        )
        self._live[live.request_id] = live
        self._later(live, self._route)

    def worker_died(self, worker: Worker) -> None:
        """Connections break: what the worker was decoding goes elsewhere, what it was prefilling is done locally."""
        for live in list(self._live.values()):
            if live.decode is worker:
                if live.prefill is not None:
                    self._cancel(live.prefill, live)
                live.excluded.add(worker.spec.worker_id)
                live.attempt += 1
                self._later(live, self._route)
            elif live.prefill is worker:
                live.attempt += 1
                self._later(live, self._prefill_here)

    def on_output(self, worker: Worker, output: StepOutput) -> None:
        """A step of this worker ended."""
        for progress in output.progress:
            self._ship(worker, progress)
        for token in output.reports():
            live = self._live.get(token.request_id)
            if live is None:
                continue
            if worker is live.decode:
                self._receive(live, token)
            elif worker is live.prefill:
                self._hand_over(live, token)

    def on_reserved(self, worker: Worker, request_ids: Sequence[str]) -> None:
        """The decode worker has the blocks: it asks the prefill worker."""
        for request_id in request_ids:
            live = self._live[request_id]
            sequence = worker.scheduler.find(request_id)
            live.num_shipped_blocks = len(sequence.table.block_ids) - len(sequence.unwritten_blocks)
            self._later(live, self._ask_prefill)

    def on_cache_changed(self, worker: Worker, removed: Sequence[bytes], stored: Sequence[bytes]) -> None:
        """Blocks left and entered the prefix cache."""
        self._control_plane.cache_changed(worker.spec.worker_id, removed, stored)

    def _later(self, live: _Live, act: Callable[[_Live], None]) -> None:
        """Act after one call, if the attempt is still the same by then."""
        attempt = live.attempt

        def arrived() -> None:
            if live.attempt == attempt and not live.record.done:
                act(live)

        self._loop.after(self._scenario.control.rpc_s, arrived)

    def _route(self, live: _Live) -> None:
        record = live.record
        if record.num_attempts >= _MAX_ATTEMPTS:
            self._refuse(live, "too many attempts")
            return
        record.num_attempts += 1
        tokens = self._known_tokens(live)
        hashes = block_hashes(self._namespace, tokens, self._scenario.block_size)
        left = live.traffic.num_output_tokens - record.num_tokens
        message = pb.RouteQuery(
            request_id=live.request_id,
            model=self._scenario.model,
            num_tokens=len(tokens),
            block_hashes=b"".join(hashes),
            max_tokens=max(left, self._scenario.asked_new_tokens - record.num_tokens),
            request_class=_CLASSES[live.traffic.is_batch],
            tenant=live.traffic.tenant,
            ttft_deadline_ms=round(1e3 * live.traffic.deadline_s),
            excluded_worker_ids=sorted(live.excluded),
        )
        attempt = live.attempt

        def answered(answer: Started | TandemError) -> None:
            if live.attempt == attempt:
                self._answered(live, answer)

        live.router.route(message, answered)

    def _answered(self, live: _Live, answer: Started | TandemError) -> None:
        record = live.record
        if isinstance(answer, TandemError):
            record.refused_after_s = self._loop.now_s - record.sent_s
            if isinstance(answer, Overloaded) and answer.retry_after_ms:
                record.retry_after_s = answer.retry_after_ms / 1e3
                self._drain.refused(live.number, record, self._loop.now_s)
            self._refuse(live, answer.code.name)
            return
        chosen = answer.decision.chosen
        live.decode = self._workers[chosen.decode.facts.worker_id]
        live.prefill = None if chosen.prefill is None else self._workers[chosen.prefill.facts.worker_id]
        live.routed_s = self._loop.now_s
        record.routed_after_s = answer.waited_ms / 1e3
        record.predicted_ttft_s = answer.decision.predicted_ttft_ms / 1e3
        record.local_prefill = live.prefill is None
        self._later(live, self._submit)

    def _submit(self, live: _Live) -> None:
        decode = live.decode
        assert decode is not None
        if not decode.alive:
            live.excluded.add(decode.spec.worker_id)
            live.attempt += 1
            self._later(live, self._route)
            return
        decode.accept(live.request_id)
        generation = self._generation(live)
        if live.prefill is None:
            self._guarded(
                live,
                decode,
                lambda: decode.scheduler.submit(generation, PrefillMode.LOCAL),
                len(generation.token_ids),
            )
        else:
            self._guarded(live, decode, lambda: decode.scheduler.reserve(generation))

    def _ask_prefill(self, live: _Live) -> None:
        prefill = live.prefill
        assert prefill is not None
        if not prefill.alive:
            self._prefill_here(live)
            return
        prefill.accept(live.request_id)
        generation = self._generation(live)
        self._guarded(
            live,
            prefill,
            lambda: prefill.scheduler.submit(generation, PrefillMode.HOLD),
            len(generation.token_ids),
        )

    def _prefill_here(self, live: _Live) -> None:
        """The prefill worker failed: exact, never an error to the client."""
        decode = live.decode
        assert decode is not None
        live.prefill = None
        live.record.local_prefill = True
        generation = self._generation(live)

        def restart() -> None:
            decode.scheduler.cancel(live.request_id)
            decode.scheduler.submit(generation, PrefillMode.LOCAL)

        self._guarded(live, decode, restart)

    def _ship(self, worker: Worker, progress: PrefillProgress) -> None:
        """Send the blocks that are complete now, each chunk while the next is computed."""
        live = self._live.get(progress.request_id)
        if live is None or live.prefill is not worker or live.decode is None:
            return
        info = worker.spec.info
        # What the prefill worker was given: without the token that it has just drawn.
        num_known = worker.scheduler.find(progress.request_id).num_given_tokens
        if progress.num_computed_tokens >= num_known:
            num_ready = -(-num_known // info.block_size)
            num_new_tokens = num_known - live.num_shipped_blocks * info.block_size
        else:
            num_ready = progress.num_computed_tokens // info.block_size
            num_new_tokens = (num_ready - live.num_shipped_blocks) * info.block_size
        if num_new_tokens <= 0:
            return
        # Of the last block only the tokens that are there count: a real block is much smaller than a simulated one.
        num_bytes = num_new_tokens * info.block_bytes // info.block_size
        tier = self._tier(worker, live.decode)
        now_s = self._loop.now_s
        source, destination = worker.spec.worker_id, live.decode.spec.worker_id
        live.arrived_s = self._links.send(source, destination, num_bytes, tier, now_s)
        if num_bytes >= _SMALL_CHUNK_BYTES:
            # As a receiver measures it: from the header of a chunk to its last byte, whatever was waited for before.
            live.decode.note_link(source, tier.bytes_per_s / 1e3)
        live.num_shipped_blocks = num_ready
        self._measurement.handoff_bytes += num_bytes

    def _hand_over(self, live: _Live, token: TokenOutput) -> None:
        """The prefill worker has drawn the first token: the decode worker goes on once all blocks are there."""
        prefill, decode, attempt = live.prefill, live.decode, live.attempt
        assert prefill is not None
        assert decode is not None
        self._measurement.num_handoffs += 1
        first = FirstToken(token_id=token.token_ids[0], num_cached_tokens=token.num_cached_tokens or 0)

        def activate() -> None:
            if live.attempt != attempt or not decode.alive:
                return
            decode.scheduler.find(live.request_id).unwritten_blocks.clear()
            self._receive(live, decode.scheduler.activate(live.request_id, first))
            live.prefill = None
            self._cancel(prefill, live)

        arrival_s = max(live.arrived_s, self._loop.now_s + self._scenario.control.rpc_s)
        self._loop.at(arrival_s, lambda: decode.command(activate))

    def _receive(self, live: _Live, token: TokenOutput) -> None:
        """A token reached the client."""
        now_s, record = self._loop.now_s, live.record
        if record.first_token_s is None:
            record.first_token_s = now_s
            record.observed_ttft_s = now_s - live.routed_s
            self._drain.settled(live.number, now_s)
            live.router.observe_ttft(1e3 * record.predicted_ttft_s, 1e3 * record.observed_ttft_s)
            record.num_cached_tokens = token.num_cached_tokens or 0
        elif record.last_token_s is not None:
            live.gaps.add(now_s - record.last_token_s)
        record.last_token_s = now_s
        record.num_tokens += 1
        if token.finish_reason is not None:
            record.done = True
            self._end(live)

    def _refuse(self, live: _Live, reason: str) -> None:
        live.record.refusal = reason
        self._end(live)

    def _end(self, live: _Live) -> None:
        live.attempt += 1
        self._drain.settled(live.number, self._loop.now_s)
        del self._live[live.request_id]
        self.num_over += 1

    def _guarded(
        self, live: _Live, worker: Worker, command: Callable[[], None], num_prompt_tokens: int = 0
    ) -> None:
        """A command for an engine, dropped when the attempt is over by then; what it refuses ends the request."""
        attempt = live.attempt

        def run() -> None:
            if live.attempt != attempt:
                return
            try:
                command()
            except TandemError as error:
                self._refuse(live, error.code.name)

        worker.command(run, num_prompt_tokens)

    def _cancel(self, worker: Worker, live: _Live) -> None:
        request_id = live.request_id
        self._loop.after(
            self._scenario.control.rpc_s,
            lambda: worker.command(lambda: worker.scheduler.cancel(request_id)),
        )

    def _generation(self, live: _Live) -> Generation:
        tokens = self._known_tokens(live)
        return Generation(
            request_id=live.request_id,
            token_ids=tokens,
            num_prompt_tokens=len(live.prompt),
            namespace=self._namespace,
            request_class=RequestClass.BATCH if live.traffic.is_batch else RequestClass.INTERACTIVE,
            stopping=StoppingParams(max_tokens=live.traffic.num_output_tokens),
            sampling=SamplingParams(seed=live.traffic.own_token),
        )

    def _router_of(self, traffic: TrafficRequest) -> Router:
        routers = self._control_plane.routers
        return routers[traffic.index % len(routers)]

    def _known_tokens(self, live: _Live) -> list[int]:
        return live.prompt + [live.traffic.own_token] * live.record.num_tokens

    def _tier(self, source: Worker, destination: Worker) -> NetworkTier:
        same_host = source.spec.host == destination.spec.host
        return TIERS[self._scenario.host_network if same_host else self._scenario.network]
