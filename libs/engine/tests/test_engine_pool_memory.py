import mmap
from pathlib import Path

import pytest
from tandem_engine.pool_memory import address_of, prefer_huge_pages

MIB = 1 << 20


def flags_at(address: int) -> list[str]:
    """What the kernel notes about the mapping that an address lies in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split()
        if not name.endswith(":"):
            start, _, end = name.partition("-")
            inside = int(start, 16) <= address < int(end, 16)
        elif inside and name == "VmFlags:":
            return rest
    raise LookupError


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages here")
def test_only_whole_huge_pages_of_the_memory_itself_are_asked_for() -> None:
    memory = memoryview(mmap.mmap(-1, 16 * MIB))
    address = address_of(memory)
    first = -(-address // (2 * MIB)) * 2 * MIB  # begins a huge page
    prefer_huge_pages(first + 1, 6 * MIB)
    wanted = ["hg" in flags_at(first + place * 2 * MIB) for place in range(5)]
    assert wanted == [False, True, True, False, False]
    memory[:] = b"x" * len(memory)
    assert memory == b"x" * len(memory)


def test_memory_without_a_whole_huge_page_is_left_alone() -> None:
    memory = memoryview(mmap.mmap(-1, MIB))
    prefer_huge_pages(address_of(memory), len(memory))
    memory[:] = b"x" * len(memory)
