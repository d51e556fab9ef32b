"""What a measurement was made on, so that a figure never travels alone."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


def describe_machine() -> dict[str, str | int | float]:
    """Processor, cores, memory, software and load: what a reader needs to judge a figure."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "torch": version("torch"),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def free_bytes() -> int:
    """Memory that can be taken without swapping."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


class Disturbance:
    """How much of a core other processes used since this was made, beside this one and those named."""

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._start = time.perf_counter()
        self._others_s = self._busy_s()

    def cores(self) -> float:
        """0 when nobody else did anything; time stolen by other virtual machines counts."""
        return (self._busy_s() - self._others_s) / (time.perf_counter() - self._start)

    def _busy_s(self) -> float:
        tick = os.sysconf("SC_CLK_TCK")
        user, nice, system, _, _, irq, softirq, steal = map(
            int, Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)[1:9]
        )
        own = sum(os.times()[:2])
        for pid in self._pids:
            fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            own += (int(fields[11]) + int(fields[12])) / tick
        return (user + nice + system + irq + softirq + steal) / tick - own
