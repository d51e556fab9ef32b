"""One request at a time, waited for: what is asked before load is made."""

from __future__ import annotations

import time

from tandem_load.connection import Connector
from tandem_load.exchange import Exchange
from tandem_load.failures import Failure
from tandem_load.pool import ConnectionPool


def ask_once(
    connector: Connector, request: bytes, timeout_s: float, *, expects_stream: bool = False
) -> Exchange:
    """The answer, complete or with a failure that says why not. Raises OSError when nothing can be reached."""
    exchange = Exchange(expects_stream=expects_stream)
    pool = ConnectionPool(connector)
    deadline_s = time.monotonic() + timeout_s
    try:
        connection = pool.send(request)
        while exchange.failure is None and not exchange.is_complete:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                exchange.failure = Failure(kind="timed out", message=f"no answer within {timeout_s:g} s")
                break
            if pool.wait(min(left_s, 0.1)):
                connection.on_ready()
                pool.update(connection)
                while (
                    connection.is_open
                    and exchange.failure is None
                    and (data := connection.receive()) is not None
                ):
                    if not data:
                        exchange.on_close("the server closed the connection")
                        break
                    exchange.feed(data, time.monotonic())
                    if exchange.is_complete:
                        break
    finally:
        pool.close()
        exchange.release()
    return exchange
