"""What a worker takes on: its role, and whether it drains. Pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

from tandem.v1 import cluster_pb2 as pb
from tandem_common.errors import Conflict, Unavailable

Role: TypeAlias = pb.Role.ValueType

# What each role may be asked to do. An aggregated worker prefills for others too.
_DUTIES: dict[Role, frozenset[Role]] = {
    pb.ROLE_PREFILL: frozenset({pb.ROLE_PREFILL}),
    pb.ROLE_DECODE: frozenset({pb.ROLE_DECODE}),
    pb.ROLE_BOTH: frozenset({pb.ROLE_PREFILL, pb.ROLE_DECODE}),
}
_NAMES: dict[str, Role] = {"prefill": pb.ROLE_PREFILL, "decode": pb.ROLE_DECODE, "both": pb.ROLE_BOTH}


def role_named(name: str) -> Role:
    """The role of that name: prefill, decode or both; KeyError for another."""
    return _NAMES[name]


def role_name(role: Role) -> str:
    """Its name."""
    return next((name for name, value in _NAMES.items() if value == role), "unspecified")


def supported_roles(installed: Collection[Role]) -> list[Role]:
    """Roles that the installed packages (of prefill and decode) allow."""
    roles = [role for role in (pb.ROLE_PREFILL, pb.ROLE_DECODE) if role in installed]
    return [*roles, pb.ROLE_BOTH] if pb.ROLE_DECODE in installed else roles


class Gate:
    """The one place that says yes or no to new work."""

    def __init__(self, role: Role, supported: Collection[Role]) -> None:
        self.supported = list(supported)
        self.check_supported(role)
        self.role = role
        self._num_drains = 0

    @property
    def draining(self) -> bool:
        """Whether nothing new is taken on."""
        return self._num_drains > 0

    def begin_drain(self) -> None:
        """Take nothing new; each call stands for itself."""
        self._num_drains += 1

    def end_drain(self) -> None:
        """Undo one `begin_drain`."""
        self._num_drains -= 1

    @property
    def status(self) -> pb.WorkerStatus.ValueType:
        """For the card."""
        return pb.WORKER_STATUS_DRAINING if self.draining else pb.WORKER_STATUS_SERVING

    def check(self, duty: Role) -> None:
        """Raise Unavailable while draining, Conflict when the role does not include `duty` (prefill or decode)."""
        if self.draining:
            raise Unavailable("this worker is draining")
        if not self.has(duty):
            raise Conflict(f"this worker's role is {role_name(self.role)}")

    def has(self, duty: Role) -> bool:
        """Whether the role includes `duty`."""
        return duty in _DUTIES[self.role]

    def keeps_duties(self, role: Role) -> bool:
        """Whether everything that is under way may go on under the new role."""
        return _DUTIES[self.role] <= _DUTIES[role]

    def check_supported(self, role: Role) -> None:
        """Conflict for a role whose package is not installed."""
        if role not in self.supported:
            raise Conflict(f"this worker cannot take the role {role_name(role)}")
