"""A plan for one model as it is served, stored and logged."""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from tandem.v1 import planner_pb2

from tandem_planner.plan import Proposal


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """An advice with the id and time at which it became the current one.

    Ids rise from decision to decision, also from one lease holder to the next.
    """

    id: int
    unix_ms: int
    proposal: Proposal

    def says_the_same_as(self, proposal: Proposal) -> bool:
        """Whether `proposal` leads to the same acts and is as sure; its figures may differ."""
        mine = self.proposal
        return (mine.current, mine.desired, mine.smallest, mine.confident) == (
            proposal.current,
            proposal.desired,
            proposal.smallest,
            proposal.confident,
        )

    def to_proto(self) -> planner_pb2.Decision:
        """The message; always advisory, since nothing acts on plans yet."""
        proposal = self.proposal
        time = Timestamp()
        time.FromMilliseconds(self.unix_ms)
        return planner_pb2.Decision(
            id=self.id,
            time=time,
            model=proposal.model,
            current=proposal.current.to_proto(),
            desired=proposal.desired.to_proto(),
            reason=proposal.reason,
            advisory=True,
            confident=proposal.confident,
            figures=proposal.figures,
        )


def first_id_under(lease_token: int) -> int:
    """Ids taken under a lease are above all ids taken under earlier ones."""
    return (lease_token << 32) + 1
