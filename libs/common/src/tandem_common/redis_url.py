"""What `redis_url` can say: which Redis, as whom, and over what.

    redis://[USER:PASSWORD@]HOST:PORT/DB                       one server
    redis+sentinel://[USER:PASSWORD@]HOST:PORT,.../MASTER/DB   the master of this name, as Sentinels at these hosts say
    redis+cluster://[USER:PASSWORD@]HOST:PORT,...              a Redis Cluster, by some of its nodes
    unix://[USER:PASSWORD@]PATH?db=DB                          one server on this machine

`rediss` instead of `redis` means TLS, to Sentinels too. Options follow a question mark: ssl_ca_certs, ssl_certfile,
ssl_keyfile, ssl_check_hostname and whatever else redis-py takes; sentinel_username and sentinel_password when
Sentinels have their own.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from redis.asyncio.connection import SSLConnection, parse_url

from tandem_common.config import ConfigError

_SENTINEL_OPTIONS = {"sentinel_username": "username", "sentinel_password": "password"}
_DEFAULT_PORTS = {"sentinel": 26379, "cluster": 6379}


class RedisKind(enum.Enum):
    """How the control plane is set up."""

    SINGLE = ""
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisUrl:
    """A URL taken apart; what may hold secrets is not shown."""

    kind: RedisKind
    url: str = field(repr=False)  # of one server; of no use for the other kinds
    nodes: tuple[tuple[str, int], ...] = ()  # Sentinels, or nodes of the cluster
    master: str = ""
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)  # of connections
    sentinel_options: Mapping[str, Any] = field(default_factory=dict, repr=False)


def parse_redis_url(text: str) -> RedisUrl:
    """Raises ConfigError, which never shows a password, for what cannot be used."""
    try:
        return _parse(text)
    except ValueError as error:
        raise ConfigError(
            f"redis_url cannot be used ({error}); write redis://HOST:PORT/0, unix://PATH, "
            "redis+sentinel://HOST:PORT,HOST:PORT/MASTER or redis+cluster://HOST:PORT,HOST:PORT, "
            "and rediss instead of redis for TLS"
        ) from None


def _parse(text: str) -> RedisUrl:
    scheme, separator, rest = text.partition("://")
    base, _, kind_name = scheme.lower().partition("+")
    if not separator or base not in ("redis", "rediss", "unix"):
        raise ValueError("unknown scheme")
    if not kind_name:
        parse_url(text)
        return RedisUrl(kind=RedisKind.SINGLE, url=text)
    kind = RedisKind(kind_name)
    if base == "unix":
        raise ValueError(f"a {kind_name} is reached over TCP")
    parts = urlsplit(f"//{rest}")
    user, at, hosts = parts.netloc.rpartition("@")
    nodes = tuple(_node(host, kind_name) for host in hosts.split(","))
    path = [unquote(part) for part in parts.path.split("/") if part]
    options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    sentinel_options = {
        name: options.pop(option) for option, name in _SENTINEL_OPTIONS.items() if option in options
    }
    master = path.pop(0) if kind is RedisKind.SENTINEL and path else ""
    if kind is RedisKind.SENTINEL and not master:
        raise ValueError("the name of the master is missing")
    if kind is RedisKind.CLUSTER and path not in ([], ["0"]):
        raise ValueError("a cluster has database 0 only")
    host, port = nodes[0]
    shown = f"[{host}]" if ":" in host else host
    # redis-py knows its options and their types.
    parsed: dict[str, Any] = dict(
        parse_url(f"{base}://{user}{at}{shown}:{port}/{'/'.join(path)}?{urlencode(options)}")
    )
    for name in ("host", "port"):
        del parsed[name]
    if parsed.pop("connection_class", None) is SSLConnection:
        parsed["ssl"] = True
        sentinel_options |= {name: value for name, value in parsed.items() if name.startswith("ssl")}
    return RedisUrl(
        kind=kind, url="", nodes=nodes, master=master, options=parsed, sentinel_options=sentinel_options
    )


def _node(text: str, kind_name: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError("a host is missing")
    return parts.hostname, parts.port or _DEFAULT_PORTS[kind_name]
