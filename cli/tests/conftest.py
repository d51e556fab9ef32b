"""Tiny programs in the place of services."""

from __future__ import annotations

import os
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tandem_cli.supervisor import ProcessSpec


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., ProcessSpec]:
    """Make the spec of a Python program from its source."""

    def make(
        name: str, source: str, *, environ: dict[str, str] | None = None, **fields: object
    ) -> ProcessSpec:
        script = tmp_path / f"{name}.py"
        script.write_text("import json, os, signal, subprocess, sys, time\n" + textwrap.dedent(source))
        argv = (sys.executable, "-I", "-S", "-u", str(script))
        return ProcessSpec(name=name, argv=argv, environ={**os.environ, **(environ or {})}, **fields)

    return make


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], None]:
    """Wait until a condition holds; fails after 10 s. For tests without an event loop."""

    def wait(condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline_s, "the condition did not come true within 10 s"
            time.sleep(0.02)

    return wait


@pytest.fixture
def is_alive() -> Callable[[int], bool]:
    """Whether a process runs; a zombie does not."""

    def check(pid: int) -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except (FileNotFoundError, ProcessLookupError):
            return False

    return check
