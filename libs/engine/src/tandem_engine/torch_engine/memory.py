"""How much memory there is, asked before it is needed."""

from __future__ import annotations

from pathlib import Path

import torch

from tandem_engine.api import ModelError

MIB = 1 << 20


def available_bytes(device: str) -> int | None:
    """Memory that can still be taken on `device`, the container's limit included; None when nobody says."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[0]
    found = [amount for amount in (_host_bytes(), _cgroup_bytes()) if amount is not None]
    return min(found, default=None)


def check_memory(*, weight_bytes: int, kv_bytes: int, available: int | None, device: str) -> None:
    """ModelError that says what is needed and what is there, and what to lower."""
    needed = weight_bytes + kv_bytes
    if available is not None and needed > available:
        raise ModelError(
            f"not enough memory on {device}: the model needs {needed // MIB} MiB ({weight_bytes // MIB} for weights, "
            f"{kv_bytes // MIB} for keys and values) and {available // MIB} MiB are available. Lower kv_cache_mib or "
            "num_blocks, choose dtype bfloat16, use a smaller model or free memory"
        )


def _host_bytes(meminfo: Path = Path("/proc/meminfo")) -> int | None:
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _cgroup_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What the control group (v2) has left; pages of files count as free, since they are given up first."""
    try:
        limit = (cgroup / "memory.max").read_text(encoding="ascii").strip()
        if limit == "max":
            return None
        used = int((cgroup / "memory.current").read_text(encoding="ascii"))
        stat = dict(
            line.split() for line in (cgroup / "memory.stat").read_text(encoding="ascii").splitlines()
        )
        return max(0, int(limit) - used + int(stat.get("inactive_file", 0)))
    except (OSError, ValueError):
        return None
