"""A non-blocking connection to a server, plain or TLS."""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
from typing import Any

from tandem_load.target import Target

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

# One for all connections: what was read is taken before anything else is read.
_BUFFER = bytearray(1 << 18)
_VIEW = memoryview(_BUFFER)
_NOTHING = _VIEW[:0]


class Connector:
    """Opens connections to one server, whose name is looked up once."""

    def __init__(self, scheme: str, host: str, port: int) -> None:
        """Raises OSError when the name is not known."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        self._family: int = found[0][0]
        self._address: Any = found[0][4]
        self._host = host
        self._tls = ssl.create_default_context() if scheme == "https" else None

    @classmethod
    def of(cls, target: Target) -> Connector:
        """To a server."""
        return cls(target.scheme, target.host, target.port)

    def use_reachable(self, timeout_s: float) -> None:
        """Find the first address that answers, as browsers do. Raises OSError when none does."""
        host, port = self._host, self._address[1]
        with socket.create_connection((host, port), timeout_s) as probe:
            self._family, self._address = probe.family, probe.getpeername()

    def open(self) -> Connection:
        """A connection that is being made. Raises OSError."""
        plain = socket.socket(self._family, socket.SOCK_STREAM)
        try:
            plain.setblocking(False)
            # A request is one write; waiting to fill a packet would only add to what is measured.
            plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = plain.connect_ex(self._address)
            if code not in (0, errno.EINPROGRESS):
                raise OSError(code, os.strerror(code))
            return Connection(plain, (self._tls, self._host) if self._tls is not None else None)
        except OSError:
            plain.close()
            raise


class Connection:
    """Bytes out and in. Its owner waits for `wants` and calls `on_ready`, then `receive`.

    What fails raises OSError (TLS's errors are such too), after which it is to be closed.
    """

    def __init__(self, plain: socket.socket, handshake: tuple[ssl.SSLContext, str] | None = None) -> None:
        self._socket = plain
        self._handshake = handshake
        self.is_open = False
        self._is_tls = handshake is not None
        self._unsent: memoryview = _NOTHING
        self.wants = WRITE
        self.descriptor = plain.fileno()  # stays the same under TLS
        self.num_requests = 0

    def send(self, data: bytes) -> None:
        """Send a request, now or as soon as the connection can take it."""
        self.num_requests += 1
        self._unsent = memoryview(data)
        if self.is_open:
            self._flush()

    @property
    def is_idle(self) -> bool:
        """Whether the last request went out in full: a server may answer before it has read all of one."""
        return self.is_open and not self._unsent

    def on_ready(self) -> None:
        """Go on with connecting or sending."""
        if not self.is_open and not self._connect():
            return
        if self._unsent:
            self._flush()
        else:
            self.wants = READ

    def receive(self) -> memoryview | None:
        """What has come, until the next call of any connection; None: nothing is left; empty: the end."""
        try:
            num_bytes = self._socket.recv_into(_BUFFER)
        except (BlockingIOError, ssl.SSLWantReadError):
            return None
        except ssl.SSLEOFError:
            return _NOTHING
        return _VIEW[:num_bytes]

    def may_have_more(self, data: memoryview, happened: int) -> bool:
        """Whether there may be more after `data` came with an event; what comes later is a new event of epoll."""
        return self._is_tls or happened != READ or len(data) == len(_BUFFER)

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()

    def _connect(self) -> bool:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, os.strerror(code))
        if self._handshake is not None:
            tls, host = self._handshake
            if not isinstance(self._socket, ssl.SSLSocket):
                self._socket = tls.wrap_socket(
                    self._socket, server_hostname=host, do_handshake_on_connect=False
                )
            try:
                self._socket.do_handshake()
            except ssl.SSLWantReadError:
                self.wants = READ
                return False
            except ssl.SSLWantWriteError:
                self.wants = WRITE
                return False
        self.is_open = True
        self.wants = READ
        return True

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._unsent)
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            sent = 0
        self._unsent = self._unsent[sent:]
        self.wants = READ | WRITE if self._unsent else READ
