"""Which incarnation of a worker this process is."""

from __future__ import annotations


class Incarnation:
    """The epoch. It grows when the process was frozen for so long that others have taken it for dead.

    What was meant for the one before (sessions to be opened, blocks under way, bookings) is refused or ignored from
    then on; sessions that are still open go on, since their frontends have not given them up.
    """

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def renew(self, epoch: int) -> None:
        """Go on as a later one."""
        assert epoch > self.epoch, "epochs grow"
        self.epoch = epoch
