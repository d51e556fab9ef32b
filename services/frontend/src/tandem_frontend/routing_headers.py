"""What HTTP headers say about routing: for clients whose SDK does not let them add fields to the body."""

from __future__ import annotations

from collections.abc import Mapping

from tandem.v1 import router_pb2
from tandem_common.errors import InvalidRequest

from tandem_frontend.options import MAX_TTFT_DEADLINE_MS

DEADLINE_HEADER = "X-Tandem-TTFT-Deadline-Ms"
SESSION_HEADER = "X-Tandem-Session-Id"
MAX_SESSION_CHARACTERS = 128


def apply_routing_headers(headers: Mapping[str, str], query: router_pb2.RouteQuery) -> None:
    """Set deadline and session of a query; a deadline in the body goes before the header. Raises InvalidRequest.

    The names in `headers` are lower-case.
    """
    deadline = headers.get(DEADLINE_HEADER.lower())
    if deadline is not None:
        if not (deadline.isascii() and deadline.isdigit() and len(deadline) <= 10):
            raise InvalidRequest(f"{DEADLINE_HEADER} must be a whole number of milliseconds")
        if not 1 <= int(deadline) <= MAX_TTFT_DEADLINE_MS:
            raise InvalidRequest(f"{DEADLINE_HEADER} must be between 1 and {MAX_TTFT_DEADLINE_MS}")
        query.ttft_deadline_ms = query.ttft_deadline_ms or int(deadline)
    session_id = headers.get(SESSION_HEADER.lower(), "")
    if len(session_id) > MAX_SESSION_CHARACTERS or not session_id.isascii():
        raise InvalidRequest(f"{SESSION_HEADER} may have up to {MAX_SESSION_CHARACTERS} ASCII characters")
    query.session_id = session_id
