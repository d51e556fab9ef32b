"""Where requests go, and what a request looks like on the wire."""

from __future__ import annotations

from urllib.parse import urlsplit

import msgspec

_PORTS = {"http": 80, "https": 443}


class TargetError(ValueError):
    """The address of a server cannot be used; the message says why."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """An OpenAI-compatible server. `base_path` ends with the version, as in /v1."""

    scheme: str
    host: str
    port: int
    base_path: str
    api_key: str = ""

    @classmethod
    def parse(cls, url: str, api_key: str = "") -> Target:
        """The server at a URL, with or without the /v1 that clients add. Raises TargetError."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            raise TargetError(f"the port in {url} is not a number from 1 to 65535") from None
        if parts.scheme not in _PORTS or not parts.hostname:
            raise TargetError(f"{url} is not an address of a server, as in http://127.0.0.1:8000")
        if parts.username or parts.query or parts.fragment:
            raise TargetError(f"pass only scheme, host, port and path, as in http://{parts.hostname}:8000/v1")
        if any(character in api_key for character in "\r\n") or not api_key.isascii():
            raise TargetError("the API key holds characters that cannot be in a header")
        path = parts.path.rstrip("/")
        return cls(
            scheme=parts.scheme,
            host=parts.hostname,
            port=port or _PORTS[parts.scheme],
            base_path=path if path.endswith("/v1") else f"{path}/v1",
            api_key=api_key,
        )

    @property
    def address(self) -> str:
        """Host and port, as in a URL."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """What requests' paths are added to."""
        return f"{self.scheme}://{self.address}{self.base_path}"

    def __repr__(self) -> str:
        """Without the key."""
        return f"Target({self.url})"

    def get(self, path: str) -> bytes:
        """A GET request, ready to be sent."""
        return self._head("GET", path) + b"\r\n"

    def post(self, path: str, body: bytes) -> bytes:
        """A POST request of JSON, ready to be sent."""
        head = self._head("POST", path)
        return b"%bContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (head, len(body), body)

    def _head(self, method: str, path: str) -> bytes:
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        return (
            f"{method} {self.base_path}{path} HTTP/1.1\r\nHost: {self.address}\r\n"
            f"User-Agent: tandem-bench\r\nAccept: */*\r\n{key}"
        ).encode()
