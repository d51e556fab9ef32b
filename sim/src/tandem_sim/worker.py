"""One worker on virtual time: the real scheduler and block pool, steps that take what the model of the GPU says."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from tandem.v1 import cluster_pb2 as pb
from tandem_common.speed import SpeedFitter
from tandem_engine.api import EngineInfo, StepCost, StepOutput
from tandem_engine.batch import Batch, Draw
from tandem_engine.block_pool import BlockPool
from tandem_engine.scheduler import Scheduler
from tandem_engine.snapshot import take_snapshot
from tandem_engine.step_cost import step_cost

from tandem_sim.event_loop import EventLoop
from tandem_sim.step_time import StepTime

# Heartbeats that repeat an accepted request.
_REPEATED_BEATS = 3
_ROLES = {"prefill": pb.ROLE_PREFILL, "decode": pb.ROLE_DECODE, "both": pb.ROLE_BOTH}
HANDOFF_FAMILY = "tandem"
_MAX_LINKS = 64
_NEWEST_WEIGHT = 0.2


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerSpec:
    """What a worker is."""

    worker_id: str
    role: str
    host: str
    hardware: str
    model: str
    info: EngineInfo
    num_gpus: int
    handoffs: bool = True


class WorkerListener(Protocol):
    """Who hears of what a worker's engine made known."""

    def on_output(self, worker: Worker, output: StepOutput) -> None:
        """A step ended."""
        ...

    def on_reserved(self, worker: Worker, request_ids: Sequence[str]) -> None:
        """Reservations got their blocks."""
        ...

    def on_cache_changed(self, worker: Worker, removed: Sequence[bytes], stored: Sequence[bytes]) -> None:
        """Blocks left and entered the prefix cache."""
        ...


class Worker:
    """An engine's loop: commands, then a step, then its report; commands wait while a step runs."""

    def __init__(
        self, spec: WorkerSpec, step_time: StepTime, loop: EventLoop, listener: WorkerListener
    ) -> None:
        self.spec = spec
        self.alive = True
        self.busy_s = 0.0
        self.num_steps = 0
        self.scheduler = Scheduler(
            spec.info, BlockPool(spec.info.num_blocks, spec.info.block_size), max_waiting=1 << 20
        )
        self.card = self._make_card()
        self._step_time = step_time
        self._loop = loop
        self._listener = listener
        self._fitter = SpeedFitter()
        self._links: dict[str, float] = {}
        self._inbox: list[tuple[Callable[[], None], int]] = []
        self._stepping = False
        self._accepted: deque[tuple[str, int]] = deque()  # with the first beat that tells of it
        self._num_beats = 0

    def command(self, command: Callable[[], None], num_prompt_tokens: int = 0) -> None:
        """Run it between two steps: now, if the engine is idle. A dead worker does nothing.

        `num_prompt_tokens` of a prompt to be computed here count as queued until then.
        """
        if not self.alive:
            return
        self._inbox.append((command, num_prompt_tokens))
        if not self._stepping:
            self._advance()

    def accept(self, request_id: str) -> None:
        """Tell of it in the next beats: its booking is superfluous from then on."""
        self._accepted.append((request_id, self._num_beats + 1))

    def note_link(self, source_worker_id: str, bytes_per_ms: float) -> None:
        """A handoff came in at this rate."""
        average = self._links.pop(source_worker_id, bytes_per_ms)
        self._links[source_worker_id] = average + _NEWEST_WEIGHT * (bytes_per_ms - average)
        if len(self._links) > _MAX_LINKS:
            del self._links[next(iter(self._links))]

    def die(self) -> None:
        """Stop for good, in the middle of a step if need be."""
        self.alive = False
        self._inbox.clear()

    def beat(self, link_latency_ms: float) -> pb.WorkerBeat:
        """What it says of itself now; made from the scheduler's own numbers, as in a real worker."""
        self._num_beats += 1
        while self._accepted and self._accepted[0][1] <= self._num_beats - _REPEATED_BEATS:
            self._accepted.popleft()
        held = take_snapshot(self.scheduler, [tokens for _, tokens in self._inbox if tokens])
        prefill, decode = self._fitter.prefill, self._fitter.decode
        return pb.WorkerBeat(
            worker_id=self.spec.worker_id,
            epoch=1,
            sequence=self._num_beats,
            num_running=held.num_running,
            num_waiting=held.num_waiting,
            queued_prefill_tokens=held.queued_prefill_tokens,
            queued_prefill_context=held.queued_prefill_context,
            passable=[pb.PassableTokens(**prompt._asdict()) for prompt in held.passable],
            num_reserved=held.num_reserved,
            reserved_tokens=held.reserved_tokens,
            decode_kv_tokens=held.decode_kv_tokens,
            num_decoding=held.num_decoding,
            num_used_blocks=held.num_used_blocks,
            num_cached_blocks=held.num_cached_blocks,
            num_awaited_blocks=held.num_awaited_blocks,
            prefill_speed=prefill.to_proto() if prefill else None,
            decode_speed=decode.to_proto() if decode else None,
            links=[
                pb.LinkSpeed(source_worker_id=source, bytes_per_ms=rate, latency_ms=link_latency_ms)
                for source, rate in self._links.items()
            ],
            accepted_request_ids=[request_id for request_id, _ in self._accepted],
        )

    def load(self) -> tuple[int, int]:
        """Sequences that run and that wait."""
        held = take_snapshot(self.scheduler)
        return held.num_running, held.num_waiting

    def _advance(self) -> None:
        """Run what waits, then begin the next step if there is one."""
        while self._inbox:
            commands, self._inbox = self._inbox, []
            # Commands of commands wait until those before them have run.
            self._stepping = True
            for command, _ in commands:
                command()
            self._stepping = False
        batch = self.scheduler.schedule()
        if granted := self.scheduler.take_granted():
            self._listener.on_reserved(self, [sequence.request_id for sequence in granted])
        if not batch.sequences:
            # What commands changed is told at once; nothing else will.
            removed, stored = self.scheduler.pool.take_changes()
            if removed or stored:
                self._listener.on_cache_changed(self, removed, stored)
            return
        work = step_cost(batch, 0.0)
        duration_s = self._step_time.step_s(work, _inner_context(batch))
        self._stepping = True
        self._loop.after(duration_s, lambda: self._finish(batch, work, duration_s))

    def _finish(self, batch: Batch, work: StepCost, duration_s: float) -> None:
        if not self.alive:
            return
        self.busy_s += duration_s
        self.num_steps += 1
        self._fitter.observe(
            duration_ms=duration_s * 1e3,
            num_prefill_tokens=work.num_prefill_tokens,
            prefill_token_context=work.prefill_token_context,
            num_decode_sequences=work.num_decode_sequences,
            decode_kv_tokens=work.decode_kv_tokens,
        )
        # The seed of a simulated request is the token that it draws over and over.
        drawn: list[Draw] = [row.sampling.seed if row.draws_token else None for row in batch.sequences]
        output = self.scheduler.postprocess(batch, drawn)
        if output.removed_hashes or output.stored_hashes:
            self._listener.on_cache_changed(self, output.removed_hashes, output.stored_hashes)
        self._listener.on_output(self, output)
        self._stepping = False
        self._advance()

    def _make_card(self) -> pb.WorkerCard:
        spec, info = self.spec, self.spec.info
        return pb.WorkerCard(
            worker_id=spec.worker_id,
            epoch=1,
            address=f"{spec.worker_id}:1",
            model=spec.model,
            model_revision="simulated",
            role=_ROLES[spec.role],
            supported_roles=[pb.ROLE_PREFILL, pb.ROLE_DECODE, pb.ROLE_BOTH],
            status=pb.WORKER_STATUS_SERVING,
            block_size=info.block_size,
            num_blocks=info.num_blocks,
            max_context_tokens=info.max_context_tokens,
            max_step_tokens=info.max_step_tokens,
            max_sequences=info.max_sequences,
            handoff_formats=[
                pb.HandoffFormat(
                    family=HANDOFF_FAMILY, layout_digest=info.layout_digest, block_bytes=info.block_bytes
                )
            ][: spec.handoffs],
            labels={"host": spec.host, "hardware": spec.hardware},
            engine=info.name,
            vocab_size=info.vocab_size,
        )


def _inner_context(batch: Batch) -> int:
    """Pairs of tokens within prompt chunks, which come last in a batch."""
    pairs = 0
    for row in reversed(batch.sequences):
        if row.num_new_tokens == 1 and row.num_computed_tokens >= row.num_prompt_tokens:
            break
        pairs += row.num_new_tokens * row.num_new_tokens // 2
    return pairs
