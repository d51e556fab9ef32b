"""What a stack costs that nobody uses: CPU and wake-ups of each process, from the kernel's scheduler.

    python bench/idle.py [--seconds 20] [--repeats 3]

Frontend, router, planner, one aggregated worker with a simulated engine, and the Redis that the stack started.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
from collections.abc import Mapping
from pathlib import Path

from frontend import MODEL
from frontend_target import running_tandem

_SETTLE_S = 8.0  # first canary, first garbage collections


async def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print("CPU ms per second (slices per second)")
    sums = []
    for _ in range(options.repeats):
        async with running_tandem(MODEL, 6.0, 64, None) as target:
            pids = dict(target.pids)
            pids["redis"] = _sibling(next(iter(target.pids.values())), "redis-server")
            await asyncio.sleep(_SETTLE_S)
            before = _read(pids)
            await asyncio.sleep(options.seconds)
            used = {
                name: [(b - a) / options.seconds for a, b in zip(before[name], after, strict=True)]
                for name, after in _read(pids).items()
            }
        sums.append(sum(cpu_ns for cpu_ns, _ in used.values()) / 1e6)
        shown = [f"{name} {cpu_ns / 1e6:.1f} ({slices:.0f})" for name, (cpu_ns, slices) in used.items()]
        print(f"{sums[-1]:.1f} = {' + '.join(shown)}", flush=True)
    print(f"median {statistics.median(sums):.1f} ms per second")


def _read(pids: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Nanoseconds computed, and slices of time, of all threads of each process."""
    costs = {}
    for name, pid in pids.items():
        computed_ns = num_slices = 0
        for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            ns, _, slices = path.read_text().split()
            computed_ns, num_slices = computed_ns + int(ns), num_slices + int(slices)
        costs[name] = (computed_ns, num_slices)
    return costs


def _sibling(pid: int, name: str) -> int:
    """The process called `name` that was started by whoever started `pid`."""
    parent = _parent(pid)
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == name and _parent(int(path.parent.name)) == parent:
                return int(path.parent.name)
        except OSError:
            continue  # it has just ended
    raise SystemExit(f"the stack has no {name}")


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


if __name__ == "__main__":
    asyncio.run(main())
