"""The connections of a load generator: kept alive between requests, as many as there are requests at once."""

from __future__ import annotations

import select

from tandem_load.connection import Connection, Connector

# epoll counts in milliseconds; what is shorter is left to select, which counts in microseconds.
_EPOLL_STEP_S = 0.001
# Without RDHUP an end that came together with data would not be told: the data's event was the only one.
_ALWAYS = select.EPOLLET | select.EPOLLRDHUP


class ConnectionPool:
    """Gives each request a connection of its own, an idle one if there is one.

    What happens is told once (edge-triggered), so a connection is to be read until it has nothing more: epoll would
    look at each socket twice otherwise.
    """

    def __init__(self, connector: Connector) -> None:
        self.num_opened = 0
        self._connector = connector
        self._epoll = select.epoll()
        self._connections: dict[int, tuple[Connection, int]] = {}  # with what epoll waits for
        self._idle: dict[int, Connection] = {}

    def send(self, request: bytes, *, on_new: bool = False) -> Connection:
        """Send a request on an idle connection, else, or `on_new`, on a new one. Raises OSError."""
        connection = self._idle.popitem()[1] if self._idle and not on_new else self._open()
        try:
            connection.send(request)
        except OSError:
            self.drop(connection)
            raise
        self.update(connection)
        return connection

    def release(self, connection: Connection) -> None:
        """The request was answered; the connection can take another one."""
        self._idle[connection.descriptor] = connection

    def drop(self, connection: Connection) -> None:
        """Close a connection."""
        descriptor = connection.descriptor
        if self._connections.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)
        self._idle.pop(descriptor, None)
        connection.close()

    def update(self, connection: Connection) -> None:
        """Wait for what the connection wants."""
        descriptor = connection.descriptor
        if self._connections[descriptor][1] != connection.wants:
            self._epoll.modify(descriptor, connection.wants | _ALWAYS)
            self._connections[descriptor] = (connection, connection.wants)

    def wait(self, timeout_s: float) -> list[tuple[int, int]]:
        """Descriptors of connections on which something happened within the time, with what."""
        if timeout_s > 2 * _EPOLL_STEP_S:
            return self._epoll.poll(timeout_s - _EPOLL_STEP_S)
        if timeout_s > 0:
            select.select([self._epoll], [], [], timeout_s)
        return self._epoll.poll(0)

    def on_idle(self, descriptor: int) -> None:
        """Something happened on a connection that nobody uses, if it is still there: the server closed it."""
        connection = self._idle.get(descriptor)
        if connection is not None:
            self.drop(connection)

    def close(self) -> None:
        """Close all."""
        for connection, _ in list(self._connections.values()):
            self.drop(connection)
        self._epoll.close()

    def _open(self) -> Connection:
        connection = self._connector.open()
        self.num_opened += 1
        self._connections[connection.descriptor] = (connection, connection.wants)
        self._epoll.register(connection.descriptor, connection.wants | _ALWAYS)
        return connection
