"""Which ports the frontend gets."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable

from tandem_common.config import ConfigError

_NUM_TRIES = 100


def can_listen(host: str, port: int) -> bool:
    """Whether a server could listen there now; ConfigError when the address itself is wrong."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except PermissionError:
            raise ConfigError(f"port {port} needs more rights than you have; choose one above 1023") from None
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise ConfigError(f"cannot listen on {host}: {error.strerror}; check --host") from None
        return True


def choose_port(
    asked: int | None,
    default: int,
    *,
    flag: str,
    is_free: Callable[[int], bool],
    avoid: frozenset[int] = frozenset(),
) -> int:
    """The port asked for (0: whichever the system gives), else the first free one from `default` on.

    ConfigError when it is not to be had.
    """
    if asked == 0:
        return 0
    if asked is not None:
        if asked in avoid or not is_free(asked):
            raise ConfigError(
                f"port {asked} is used by another program; stop it, pass another {flag}, or leave {flag} out "
                "to take the next free one"
            )
        return asked
    for port in range(default, default + _NUM_TRIES):
        if port not in avoid and is_free(port):
            return port
    raise ConfigError(
        f"no port from {default} to {default + _NUM_TRIES - 1} is free; pass {flag} with a free one"
    )
