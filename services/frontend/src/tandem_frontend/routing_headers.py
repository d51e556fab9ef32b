"""What HTTP headers say about routing: for clients whose SDK does not let them add fields to the body."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tandem.v1 import router_pb2
from tandem_common.errors import InvalidRequest

from tandem_frontend.options import MAX_TTFT_DEADLINE_MS

LABELS_HEADER = "X-Tandem-Labels"
WORKERS_HEADER = "X-Tandem-Workers"
EXCLUDED_HEADER = "X-Tandem-Excluded-Workers"
PRICE_HEADER = "X-Tandem-Max-Price"
DEADLINE_HEADER = "X-Tandem-TTFT-Deadline-Ms"
SESSION_HEADER = "X-Tandem-Session-Id"
MAX_SESSION_CHARACTERS = 128
_MAX_LIST_CHARACTERS = 4096
_PREFIX = "x-tandem-"
_PRICE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def apply_routing_headers(headers: Mapping[str, str], query: router_pb2.RouteQuery) -> None:
    """Set deadline, session and wishes of a query; a deadline in the body goes before the header.

    The names in `headers` are lower-case. Raises InvalidRequest; the router checks ids, labels and price once more.
    """
    if not any(name.startswith(_PREFIX) for name in headers):
        return
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
    query.pinned_worker_ids.extend(_list(headers, WORKERS_HEADER))
    query.excluded_worker_ids.extend(_list(headers, EXCLUDED_HEADER))
    for label in _list(headers, LABELS_HEADER):
        key, _, value = label.partition("=")
        if not (key and value):
            raise InvalidRequest(f"{LABELS_HEADER} must be KEY=VALUE, separated by commas")
        query.required_labels[key.strip()] = value.strip()
    price = headers.get(PRICE_HEADER.lower())
    if price is not None:
        if not _PRICE.fullmatch(price):
            raise InvalidRequest(f"{PRICE_HEADER} must be a number: the most that a million tokens may cost")
        query.max_price_per_million_tokens = float(price)


def _list(headers: Mapping[str, str], name: str) -> list[str]:
    text = headers.get(name.lower(), "")
    if len(text) > _MAX_LIST_CHARACTERS or not text.isascii():
        raise InvalidRequest(f"{name} may have up to {_MAX_LIST_CHARACTERS} ASCII characters")
    return [item.strip() for item in text.split(",") if item.strip()]
