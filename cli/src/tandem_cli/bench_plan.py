"""What `tandem bench` was asked for: the points of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tandem_common.config import ConfigError
from tandem_load.conversation import PromptShape
from tandem_load.dialect import Dialect
from tandem_load.lengths import Lengths
from tandem_load.load_task import Arrivals, Clients, LatencyTargets, LoadTask, Replay, Traffic
from tandem_load.target import Target
from tandem_load.traces import TraceError, load_trace

DEFAULT_CONCURRENCY = "1,4,16"
DEFAULT_DURATION_S = 5.0
DEFAULT_WARMUP_S = 1.0
# Points of one sweep use other prompts, or the server would find those of the point before in its cache.
_SEED_STEP = 1_000_003


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """Everything but the server. None: not asked for."""

    traffic: tuple[Traffic, ...]
    shape: PromptShape
    targets: LatencyTargets
    warmup_s: float
    duration_s: float | None
    max_requests: int | None
    timeout_s: float
    seed: int

    def tasks(self, target: Target, dialect: Dialect) -> list[LoadTask]:
        """One task a point."""
        return [
            LoadTask(
                target=target,
                dialect=dialect,
                traffic=traffic,
                shape=self.shape,
                targets=self.targets,
                warmup_s=self.warmup_s,
                duration_s=self.duration_s,
                max_requests=self.max_requests,
                timeout_s=self.timeout_s,
                seed=self.seed + _SEED_STEP * index,
            )
            for index, traffic in enumerate(self.traffic)
        ]


def parse_traffic(
    concurrency: str | None,
    rate: str | None,
    trace: Path | None,
    *,
    evenly: bool,
    speed: str,
    length_scale: float,
) -> tuple[Traffic, ...]:
    """The loads to make. Raises ConfigError."""
    if sum(option is not None for option in (concurrency, rate, trace)) > 1:
        raise ConfigError("pass only one of --concurrency, --rate and --trace")
    if trace is not None:
        try:
            load_trace(trace, 1)
        except TraceError as error:
            raise ConfigError(str(error)) from None
        return tuple(
            Replay(path=str(trace), speed=factor, length_scale=length_scale)
            for factor in _numbers("--speed", speed)
        )
    if rate is not None:
        return tuple(Arrivals(rate=number, evenly=evenly) for number in _numbers("--rate", rate))
    counts = _numbers("--concurrency", concurrency or DEFAULT_CONCURRENCY)
    if any(count != int(count) for count in counts):
        raise ConfigError(f"--concurrency {concurrency}: a number of clients is whole")
    return tuple(Clients(count=int(count)) for count in counts)


def parse_lengths(option: str, text: str) -> Lengths:
    """A length, fixed or drawn. Raises ConfigError."""
    try:
        return Lengths.parse(text)
    except ValueError as error:
        raise ConfigError(f"{option} {error}") from None


def target_s(milliseconds: float) -> float | None:
    """A target in seconds; 0 asks for nothing."""
    return milliseconds / 1e3 if milliseconds else None


def _numbers(option: str, text: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or any(not 0 < number < 1e6 for number in numbers):
        raise ConfigError(f"{option} {text}: expected numbers above 0, separated by commas, as in 1,4,16")
    return numbers
