"""What processes cost, from the operating system's accounting."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class ProcessCost:
    """CPU time so far in seconds (user and system, all threads), and memory in MiB."""

    cpu_s: float
    rss_mib: float


def read_costs(pids: Mapping[str, int]) -> dict[str, ProcessCost]:
    """Of these processes, by name."""
    return {name: _read(pid) for name, pid in pids.items()}


def _read(pid: int) -> ProcessCost:
    # The name may contain spaces; what follows its closing bracket is fields 3, 4, ...
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    user, system, rss_pages = int(fields[11]), int(fields[12]), int(fields[21])
    return ProcessCost(
        cpu_s=(user + system) / _TICKS_PER_S,
        rss_mib=rss_pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
    )
