"""What to start, and how to tell that it is ready and when to stop it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Facts = Mapping[str, str | int]


@dataclass(frozen=True, kw_only=True)
class ProcessSpec:
    """One program of a stack.

    `environ` is the whole environment, secrets included: they are on no command line and in no representation.
    Stopping goes from the highest `tier` to the lowest; the next one waits at most `stop_wait_s` for this one.
    """

    name: str
    argv: tuple[str, ...]
    environ: Mapping[str, str] = field(repr=False)
    tier: int = 0
    # A Redis that is ready when it answers PING here; None: a service that prints {"ready": ...} on stdout.
    ready_socket: Path | None = None
    start_timeout_s: float = 120.0
    stop_wait_s: float = 1.0

    def __post_init__(self) -> None:
        """Names become file names."""
        if not self.name.replace("-", "").isalnum():
            raise ValueError(f"process name {self.name!r} must consist of letters, digits and '-'")
        if not self.argv:
            raise ValueError(f"{self.name} has no command")


def parse_ready_line(line: bytes) -> Facts | None:
    """The facts of a ready line such as {"ready": "router", "port": 4711}; None for any other line."""
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or "ready" not in content:
        return None
    return {key: value for key, value in content.items() if isinstance(value, (str, int))}


def describe_exit(returncode: int) -> str:
    """A process's end in words; negative codes are signals, as `subprocess` has them."""
    if returncode >= 0:
        return f"ended with exit code {returncode}"
    hint = " (killed from outside, perhaps for lack of memory)" if returncode == -9 else ""
    return f"was ended by signal {-returncode}{hint}"
