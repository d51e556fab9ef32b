"""What is simulated: workers, their network, the services' settings, faults and targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from tandem_sim.hardware import GPUS
from tandem_sim.models import MODELS
from tandem_sim.network import TIERS
from tandem_sim.step_time import STEP_MODELS

RouterSetting = str | int | float | tuple[str, ...]
ROLES = ("prefill", "decode", "both")


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerGroup:
    """Equal workers; their ids are role-0000, role-0001, ... counted over all groups of the role."""

    role: str
    count: int
    gpu: str = "H100"
    speed: float = 1.0  # 0.5: everything takes twice as long
    max_step_tokens: int = 8192  # chunk of a prompt, less what decodes take
    max_sequences: int = 256
    handoffs: bool = True  # False: each computes its own prompts, as aggregated workers do elsewhere

    def __post_init__(self) -> None:
        """Check names and numbers."""
        _choice("role", self.role, ROLES)
        _choice("gpu", self.gpu, GPUS)
        if self.count < 0 or self.speed <= 0 or self.max_step_tokens < 1 or self.max_sequences < 1:
            raise ValueError(f"a group of workers makes no sense: {self}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """A worker that dies, for good."""

    time_s: float
    worker_id: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """What a request must meet, both, to count as goodput."""

    ttft_s: float = 2.0
    tpot_s: float = 0.050


@dataclass(frozen=True, kw_only=True, slots=True)
class Control:
    """Delays and intervals of the services, as they are configured by default."""

    heartbeat_s: float = 0.25
    poll_s: float = 0.25  # between two looks of the router at the registry
    kv_event_delay_s: float = 0.030  # gathered for 25 ms, then through the stream to the router's index
    exchange_s: float = 0.005  # until the other routers know a booking
    rpc_s: float = 0.0005  # one call, one way
    fault_detection_s: float = 0.050  # until a broken connection is known
    plan_interval_s: float = 5.0
    observe_interval_s: float = 0.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """One simulation, but for its traffic."""

    model: str = "llama-3-70b"
    step_model: str = "roofline"
    workers: tuple[WorkerGroup, ...]
    policy: str = "predictive"
    seed: int = 0
    block_size: int = 512
    gpus_per_host: int = 8
    host_network: str = "nvlink"
    network: str = "rdma"  # between hosts
    targets: Targets = Targets()
    control: Control = Control()
    faults: tuple[Fault, ...] = ()
    num_routers: int = 1  # requests take turns
    router: Mapping[str, RouterSetting] = field(
        default_factory=dict
    )  # settings of RouterConfig that are not default
    asked_new_tokens: int = 2048  # clients' max_tokens: the router does not know how long answers will be
    with_planner: bool = True
    give_up_s: float = 600.0  # after the last arrival

    def __post_init__(self) -> None:
        """Check names, and that somebody can answer."""
        _choice("model", self.model, MODELS)
        _choice("step_model", self.step_model, STEP_MODELS)
        _choice("network", self.network, TIERS)
        _choice("host_network", self.host_network, TIERS)
        if self.num_routers < 1:
            raise ValueError(f"somebody must route: {self.num_routers} routers")
        if not any(group.count and group.role != "prefill" for group in self.workers):
            raise ValueError("nobody decodes: add decode or aggregated workers")

    @property
    def num_gpus(self) -> int:
        """GPUs of all workers together."""
        return MODELS[self.model].tensor_parallel * sum(group.count for group in self.workers)


def _choice(name: str, value: str, known: object) -> None:
    names = sorted(known) if isinstance(known, dict) else list(known)  # type: ignore[call-overload]
    if value not in names:
        raise ValueError(f"{name} = {value!r}: must be one of {', '.join(names)}")
