"""Tickets: what a decode worker signs so that a prefill worker may write into its blocks.

A ticket is made and checked by the same worker. It names the request, the lease, both workers and the blocks; it
ends with its lease, by that worker's own clock, so no time is in it.
"""

from __future__ import annotations

import hmac
from hashlib import sha256

from google.protobuf.message import DecodeError
from tandem.v1 import transfer_pb2 as pb
from tandem_common.errors import PermissionDenied

MAX_TICKET_BYTES = 2048
# Domain separation: no other use of the cluster secret gives these MACs.
_KEY_LABEL = b"tandem handoff ticket v1"


class TicketOffice:
    """Makes and checks tickets under the cluster secret."""

    def __init__(self, cluster_secret: bytes) -> None:
        self._key = hmac.new(cluster_secret, _KEY_LABEL, sha256).digest()

    def sign(self, claims: pb.TicketClaims) -> bytes:
        """A ticket (serialized SignedTicket) that says `claims`."""
        body = claims.SerializeToString(deterministic=True)
        return pb.SignedTicket(claims=body, mac=self._mac(body)).SerializeToString()

    def verify(self, ticket: bytes) -> pb.TicketClaims:
        """What a ticket says; PermissionDenied unless it was signed under our secret. Takes constant time."""
        if len(ticket) > MAX_TICKET_BYTES:
            raise PermissionDenied("the ticket is not valid")
        try:
            signed = pb.SignedTicket.FromString(ticket)
        except DecodeError:
            raise PermissionDenied("the ticket is not valid") from None
        if not hmac.compare_digest(signed.mac, self._mac(signed.claims)):
            raise PermissionDenied("the ticket is not valid")
        return pb.TicketClaims.FromString(signed.claims)

    def _mac(self, body: bytes) -> bytes:
        return hmac.digest(self._key, body, "sha256")
