"""The seam between a worker and its roles.

A role is a package that names a class in the entry-point group "tandem.roles". All installed roles are served from the
start; the worker's gate decides what each of them accepts, so changing the role needs no restart.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import ClassVar, Protocol

import grpc
from tandem_common.errors import TandemError

from tandem_worker.gate import Role
from tandem_worker.worker import Worker

ROLE_GROUP = "tandem.roles"


class RoleService(Protocol):
    """One of the two duties (prefill, decode) of a worker, as a gRPC service."""

    duty: ClassVar[Role]
    service_name: ClassVar[str]  # full gRPC name

    def __init__(self, worker: Worker) -> None:
        """The worker that it serves for."""
        ...

    def add_to(self, server: grpc.aio.Server) -> None:
        """Register the servicer."""
        ...

    @property
    def num_sessions(self) -> int:
        """Sessions open with frontends."""
        ...

    async def end(self, reason: TandemError) -> None:
        """The duty was taken away, or the worker ends: end what is open, saying `reason`."""
        ...


def installed_roles() -> list[type[RoleService]]:
    """The roles whose packages are installed, by name."""
    points = sorted(entry_points(group=ROLE_GROUP), key=lambda point: point.name)
    return [point.load() for point in points]
