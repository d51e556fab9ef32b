"""A whole simulation: builds the cluster of a scenario, sends it traffic, and gives back what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

from tandem_engine.api import EngineInfo
from tandem_load.traffic import VOCAB_SIZE, TrafficRequest

from tandem_sim.control_plane import ControlPlane
from tandem_sim.event_loop import EventLoop
from tandem_sim.hardware import GPUS
from tandem_sim.measurement import Measurement, Sample
from tandem_sim.models import MODELS
from tandem_sim.network import TIERS
from tandem_sim.request_flow import RequestFlow
from tandem_sim.scenario import Fault, Scenario, WorkerGroup
from tandem_sim.step_time import StepTime, gpu_step_time, kv_tokens
from tandem_sim.worker import Worker, WorkerSpec

SAMPLE_S = 5.0


class Simulation:
    """Made once, run once. `step_times` replaces the roofline of some workers by their ids."""

    def __init__(
        self, scenario: Scenario, step_times: dict[str, tuple[StepTime, EngineInfo]] | None = None
    ) -> None:
        self._scenario = scenario
        self._loop = EventLoop()
        self._measurement = Measurement(records=[])
        tier = TIERS[scenario.network]
        self._control_plane = ControlPlane(scenario, self._loop, tier.latency_s * 1e3)
        self._flow = RequestFlow(scenario, self._loop, self._control_plane, self._measurement)
        self.workers = self._make_workers(step_times or {})
        self._sampled: dict[str, float] = {}
        unknown = {fault.worker_id for fault in scenario.faults} - self.workers.keys()
        if unknown:
            raise ValueError(f"no worker is called {', '.join(sorted(unknown))}; there are: {self._names()}")

    def run(self, requests: Sequence[TrafficRequest]) -> Measurement:
        """Send all requests at their times, and go on until each has been answered or refused."""
        loop, flow, measurement = self._loop, self._flow, self._measurement
        flow.start(self.workers)
        self._control_plane.start(list(self.workers.values()))
        loop.every(SAMPLE_S, self._sample, first_s=SAMPLE_S)
        for fault in self._scenario.faults:
            loop.at(fault.time_s, lambda fault=fault: self._kill(fault))  # type: ignore[misc]
        for request in requests:
            loop.at(request.time_s, lambda request=request: flow.arrive(request))  # type: ignore[misc]
        last_s = requests[-1].time_s if requests else 0.0
        loop.run(lambda: flow.num_over >= len(requests), last_s + self._scenario.give_up_s)
        measurement.end_s = loop.now_s
        measurement.advice = self._control_plane.advice
        for worker in self.workers.values():
            measurement.num_preemptions += worker.scheduler.num_preemptions
            measurement.num_steps += worker.num_steps
            measurement.busy_s[worker.spec.worker_id] = worker.busy_s
        return measurement

    def check_integrity(self) -> None:
        """Raise BrokenInvariant unless every living worker's sequences and blocks agree."""
        for worker in self.workers.values():
            if worker.alive:
                worker.scheduler.check_integrity()

    def _make_workers(self, step_times: dict[str, tuple[StepTime, EngineInfo]]) -> dict[str, Worker]:
        workers: dict[str, Worker] = {}
        numbers = {group.role: 0 for group in self._scenario.workers}
        num_gpus = 0
        tensor_parallel = MODELS[self._scenario.model].tensor_parallel
        for group in self._scenario.workers:
            step_time, info = self._engine(group)
            for _ in range(group.count):
                worker_id = f"{group.role}-{numbers[group.role]:04d}"
                numbers[group.role] += 1
                its_time, its_info = step_times.get(worker_id, (step_time, info))
                spec = WorkerSpec(
                    worker_id=worker_id,
                    role=group.role,
                    host=f"host-{num_gpus // self._scenario.gpus_per_host:04d}",
                    hardware=group.gpu if group.speed == 1.0 else f"{group.gpu} x {group.speed:g}",
                    model=self._scenario.model,
                    info=its_info,
                    num_gpus=tensor_parallel,
                    handoffs=group.handoffs,
                )
                num_gpus += tensor_parallel
                workers[worker_id] = Worker(spec, its_time, self._loop, self._flow)
        return workers

    def _engine(self, group: WorkerGroup) -> tuple[StepTime, EngineInfo]:
        model, gpu, size = MODELS[self._scenario.model], GPUS[group.gpu], self._scenario.block_size
        num_blocks = kv_tokens(gpu, model) // size
        info = EngineInfo(
            name="simulated",
            vocab_size=VOCAB_SIZE,
            max_context_tokens=min(model.max_context_tokens, num_blocks * size),
            block_size=size,
            num_blocks=num_blocks,
            max_step_tokens=group.max_step_tokens,
            max_sequences=group.max_sequences,
            dtype="bfloat16",
            block_shape=(model.num_growing_layers, 2, size, model.num_kv_heads, model.head_size),
            block_bytes=size * model.kv_bytes_per_token,
            layout_digest=blake2b(f"{model.name} {size}".encode(), digest_size=16).digest(),
        )
        return gpu_step_time(self._scenario.step_model, group.gpu, model.name, group.speed), info

    def _kill(self, fault: Fault) -> None:
        worker = self.workers[fault.worker_id]
        if worker.alive:
            worker.die()
            self._control_plane.lost(worker)
            self._loop.after(self._scenario.control.fault_detection_s, lambda: self._flow.worker_died(worker))

    def _sample(self) -> None:
        busy: dict[str, float] = {}
        counts: dict[str, int] = {}
        num_running = num_waiting = 0
        for worker_id, worker in self.workers.items():
            role = worker.spec.role
            busy[role] = busy.get(role, 0.0) + worker.busy_s - self._sampled.get(worker_id, 0.0)
            counts[role] = counts.get(role, 0) + 1
            self._sampled[worker_id] = worker.busy_s
            running, waiting = worker.load()
            num_running += running
            num_waiting += waiting
        self._measurement.samples.append(
            Sample(
                time_s=self._loop.now_s,
                utilisation={role: busy[role] / (SAMPLE_S * counts[role]) for role in sorted(busy)},
                num_running=num_running,
                num_waiting=num_waiting,
            )
        )

    def _names(self) -> str:
        names = list(self.workers)
        return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
