"""Redis as operators set it up, of real processes for one test: a cluster, a watched pair, a server behind TLS."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import redis
from redis_server import redis_executable

_NUM_SLOTS = 16_384
_PATIENCE_S = 20.0


class Node:
    """One process of Redis on a port of its own."""

    def __init__(self, directory: Path, *options: str, sentinel: bool = False) -> None:
        self.port = _free_port()
        directory = directory / str(self.port)
        directory.mkdir()
        config = directory / "redis.conf"
        config.write_text("\n".join((f"port {self.port}", "bind 127.0.0.1", f"dir {directory}", *options)))
        self._process = subprocess.Popen(
            [redis_executable(), str(config), *(["--sentinel"] if sentinel else [])],
            stdout=subprocess.DEVNULL,
        )
        self.client = redis.Redis(port=self.port, socket_timeout=5)
        until(self._answers)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait(10)
        self.client.close()

    def _answers(self) -> bool:
        assert self._process.poll() is None, "redis-server ended at its start"
        try:
            return bool(self.client.ping())
        except redis.exceptions.ConnectionError:
            return False


_QUIET = ('save ""', "appendonly no", "loglevel warning")


@contextlib.contextmanager
def running(nodes: list[Node]) -> Iterator[list[Node]]:
    try:
        yield nodes
    finally:
        for node in nodes:
            node.kill()


@contextlib.contextmanager
def redis_cluster(directory: Path) -> Iterator[list[Node]]:
    """Three masters that share the slots."""
    options = (
        *_QUIET,
        "cluster-enabled yes",
        "cluster-node-timeout 2000",
        "cluster-require-full-coverage no",
    )
    with running([Node(directory, *options) for _ in range(3)]) as nodes:
        for number, node in enumerate(nodes):
            slots = range(number * _NUM_SLOTS // 3, (number + 1) * _NUM_SLOTS // 3)
            node.client.execute_command("CLUSTER ADDSLOTS", *slots)
            node.client.execute_command("CLUSTER MEET", "127.0.0.1", nodes[0].port)
        until(lambda: all(_state(node) == ("ok", "3") for node in nodes))
        yield nodes


@contextlib.contextmanager
def watched_pair(directory: Path) -> Iterator[tuple[Node, Node, Node]]:
    """A master, its replica, and a Sentinel that knows them as `main`."""
    with running([Node(directory, *_QUIET, "repl-diskless-sync-delay 0")]) as nodes:
        nodes.append(Node(directory, *_QUIET, f"replicaof 127.0.0.1 {nodes[0].port}"))
        until(lambda: nodes[1].client.info("replication")["master_link_status"] == "up")
        nodes.append(
            Node(
                directory,
                f"sentinel monitor main 127.0.0.1 {nodes[0].port} 1",
                "sentinel down-after-milliseconds main 500",
                "sentinel failover-timeout main 2000",
                sentinel=True,
            )
        )
        until(lambda: nodes[2].client.sentinel_masters()["main"]["num-slaves"] == 1)
        yield nodes[0], nodes[1], nodes[2]


@contextlib.asynccontextmanager
async def behind_tls(directory: Path, socket_path: str) -> AsyncIterator[tuple[int, Path]]:
    """A port on which the Redis at a Unix socket is reached over TLS, and the certificate to trust."""
    certificate, key = directory / "cert.pem", directory / "key.pem"
    openssl = shutil.which("openssl")
    assert openssl, "checked by the caller"
    await asyncio.to_thread(
        subprocess.run,
        [
            *(
                openssl,
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65_536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(socket_path)
        await asyncio.gather(pump(reader, inner_writer), pump(inner_reader, writer))

    server = await asyncio.start_server(serve, "localhost", 0, family=socket.AF_INET, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], certificate
    finally:
        server.close()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def _state(node: Node) -> tuple[str, str]:
    info = node.client.cluster("info")
    return info["cluster_state"], info["cluster_known_nodes"]


def _free_port() -> int:
    """Free, and the one 10,000 above too, which nodes of a cluster use among themselves."""
    while True:
        port = random.randrange(20_000, 32_000)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            other.bind(("127.0.0.1", port + 10_000))
            return port
