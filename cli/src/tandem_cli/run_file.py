"""How other commands find a stack that `tandem up` started: one small file per stack.

The file is locked as long as its stack lives, so that a file left by a `kill -9` is recognised, and removed
together with the stack's temporary directory. Only the user can read it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from tandem_common.config import ConfigError

RUN_DIR_PREFIX = "tandem-up-"


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """A running stack. `redis_url` is the private Redis, "" when the stack uses another one."""

    pid: int
    model: str
    http_address: str
    grpc_address: str
    router_address: str
    redis_url: str
    cluster: str
    cluster_secret: str = field(repr=False)
    run_dir: str


def run_files_dir(environ: Mapping[str, str]) -> Path:
    """Where the files of this user are: tandem-UID in $XDG_RUNTIME_DIR if there is one, else with temporary files."""
    runtime_dir = environ.get("XDG_RUNTIME_DIR", "")
    # Some shells (su, containers) hand on the name of a directory that does not exist.
    base = runtime_dir if runtime_dir and Path(runtime_dir).is_dir() else tempfile.gettempdir()
    return Path(base) / f"tandem-{os.getuid()}"


class RunFile:
    """The file of one stack, held open and locked; removed when the context ends."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{secrets.token_hex(4)}.json"
        self._descriptor = -1

    def write(self, record: RunRecord) -> None:
        """Make the stack known, once. ConfigError when somebody else owns the directory."""
        while not self._try_write(record):
            # Another stack's end removed the directory, or took the file for a stale one before it was locked.
            continue

    def _try_write(self, record: RunRecord) -> bool:
        directory = self._path.parent
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(directory)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        except FileNotFoundError:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.write(descriptor, json.dumps(dataclasses.asdict(record)).encode())
        if os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            return False
        self._descriptor = descriptor
        return True

    def remove(self) -> None:
        """The stack is gone; idempotent."""
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1
            _remove_if_empty(self._path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()


def running_stacks(directory: Path) -> list[RunRecord]:
    """The stacks of this user that run now, the latest first; cleans up after those that were killed."""
    if not directory.is_dir():
        return []
    _check_private(directory)
    found: list[tuple[float, RunRecord]] = []
    for path in directory.glob("*.json"):
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            record = _parse(file.read())
            if not _is_locked(file.fileno()):
                path.unlink(missing_ok=True)
                if record is not None:
                    _remove_run_dir(Path(record.run_dir))
            elif record is not None:
                found.append((os.fstat(file.fileno()).st_mtime, record))
    _remove_if_empty(directory)
    return [record for _, record in sorted(found, key=lambda pair: -pair[0])]


def _is_locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _parse(content: bytes) -> RunRecord | None:
    """The record, or None when it is incomplete or of another version."""
    try:
        values = json.loads(content)
        return RunRecord(**values)
    except (ValueError, TypeError):
        return None


def _check_private(directory: Path) -> None:
    """ConfigError unless the directory is ours alone: in a shared /tmp, somebody else may have made it."""
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise ConfigError(
            f"{directory} must be a directory that only you can enter; remove it, or set XDG_RUNTIME_DIR"
        )


def _remove_run_dir(directory: Path) -> None:
    """Remove what a killed stack left; only a directory that is plainly one of ours."""
    is_ours = directory.name.startswith(RUN_DIR_PREFIX) and directory.is_dir() and not directory.is_symlink()
    if is_ours and directory.stat().st_uid == os.getuid():
        shutil.rmtree(directory, ignore_errors=True)


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()
