"""How the bytes of blocks travel between two workers: shared memory on one host, TCP sockets otherwise."""

from tandem_worker.transports.api import BlockSink, Connection, OutgoingChunk, Room, Source, TransportBroken
from tandem_worker.transports.peers import PeerConnections
from tandem_worker.transports.receiver import Receiver

__all__ = [
    "BlockSink",
    "Connection",
    "OutgoingChunk",
    "PeerConnections",
    "Receiver",
    "Room",
    "Source",
    "TransportBroken",
]
