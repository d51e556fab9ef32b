"""A whole stack, started as users start it, and the oracle that says whether anything leaked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from tandem.v1 import worker_pb2, worker_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
SHIPPED_MODEL = ROOT / "models" / "tandem-tiny"


@dataclass
class Stack:
    """A running `tandem up`."""

    process: subprocess.Popen[str]
    facts: dict[str, Any]
    log_dir: Path

    @property
    def url(self) -> str:
        return f"http://{self.facts['http_address']}"

    @property
    def grpc_address(self) -> str:
        return str(self.facts["grpc_address"])

    @property
    def model(self) -> str:
        return str(self.facts["model"])

    @property
    def workers(self) -> dict[str, str]:
        """gRPC addresses of the workers, by name."""
        return {name: facts["address"] for name, facts in self.facts["processes"].items() if "role" in facts}

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def pid(self, name: str) -> int:
        return int(self.facts["processes"][name]["pid"])

    def kill(self, name: str) -> None:
        os.kill(self.pid(name), signal.SIGKILL)

    def log(self, name: str) -> str:
        return "".join(path.read_text() for path in sorted(self.log_dir.glob(f"{name}*")))

    def state(self, name: str) -> worker_pb2.GetStateResponse:
        with grpc.insecure_channel(self.workers[name]) as channel:
            stub = worker_pb2_grpc.WorkerServiceStub(channel)
            return stub.GetState(worker_pb2.GetStateRequest(), timeout=5)

    def assert_quiet(self, timeout_s: float = 5.0, without: tuple[str, ...] = ()) -> None:
        """Wait until no worker holds a request, a lease or a block in use."""
        deadline = time.monotonic() + timeout_s
        for name in sorted(set(self.workers) - set(without)):
            while True:
                state = self.state(name)
                blocks = state.blocks
                left = [*state.requests, *state.leases]
                if not left and blocks.used == 0:
                    break
                assert time.monotonic() < deadline, f"{name} still holds {left}, {blocks.used} blocks"
                time.sleep(0.02)
            assert blocks.total == blocks.used + blocks.cached + blocks.free

    def complete(self, prompt: str | list[int], **body: Any) -> dict[str, Any]:
        """One completion; fails the test on an error."""
        with self.client() as client:
            response = client.post("/v1/completions", json={"model": self.model, "prompt": prompt, **body})
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result

    def chat(self, content: str, **body: Any) -> dict[str, Any]:
        """One chat completion; fails the test on an error."""
        messages = [{"role": "user", "content": content}]
        with self.client() as client:
            response = client.post(
                "/v1/chat/completions", json={"model": self.model, "messages": messages, **body}
            )
        assert response.status_code == 200, response.text
        result: dict[str, Any] = response.json()
        return result


@contextlib.contextmanager
def running_stack(*options: str, environ: dict[str, str] | None = None) -> Iterator[Stack]:
    """`tandem up` with these options on free ports; stopped by SIGINT at the end."""
    with tempfile.TemporaryDirectory(prefix="tandem-test-") as directory:
        log_dir = Path(directory)
        errors = (log_dir / "up.err").open("w")
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "tandem_cli", "up", "--json-ready", "--log-dir", str(log_dir)),
                # Any free ports: other stacks may be starting at the same moment.
                *("--setting", "frontend.http_port=0", "--setting", "frontend.port=0"),
                *options,
            ],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environ or {})},
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, (log_dir / "up.err").read_text()
            yield Stack(process, json.loads(line), log_dir)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
            assert process.stdout is not None
            process.stdout.close()
            errors.close()


@pytest.fixture(scope="session")
def start_stack() -> Any:
    """`running_stack`, for tests that need a stack of their own."""
    return running_stack


@pytest.fixture(scope="session")
def shipped_model() -> Path:
    """Directory of the model in the repository."""
    return SHIPPED_MODEL


@pytest.fixture(scope="session")
def shared_stack() -> Iterator[Stack]:
    """Two prefill and two decode workers with the shipped model, for all tests that break nothing."""
    with running_stack(
        "--model", str(SHIPPED_MODEL), "--prefill", "2", "--decode", "2", "--kv-cache-mib", "64"
    ) as stack:
        yield stack


@pytest.fixture
def stack(shared_stack: Stack) -> Iterator[Stack]:
    """The shared stack; whatever a test did, nothing may be left of it afterwards."""
    yield shared_stack
    shared_stack.assert_quiet()
