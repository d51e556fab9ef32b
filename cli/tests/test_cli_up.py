"""`tandem up` with the real services on the simulated engine: start, chat, crash, stop; and nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tandem_client import Client

START_S = 90
# Any free ports: other stacks may be starting at the same moment.
ENGINE = ("--engine", "simulated", "--prefill", "1", "--decode", "1", "--http-port", "0", "--grpc-port", "0")


@dataclass
class Up:
    """A running `tandem up --json-ready`."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    environ: dict[str, str]

    def pids(self) -> list[int]:
        return [process["pid"] for process in self.ready["processes"].values()]

    def tandem(self, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tandem_cli", *arguments],
            input=stdin, capture_output=True, text=True, timeout=60, env=self.environ, check=False,
        )  # fmt: skip


@contextlib.contextmanager
def run_up(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    """Start `tandem up` with every temporary file below tmp_path; kill it in the end."""
    temporary, runtime = tmp_path / "tmp", tmp_path / "run"
    temporary.mkdir(exist_ok=True)
    runtime.mkdir(exist_ok=True, mode=0o700)
    environ = {**os.environ, "TMPDIR": str(temporary), "XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "200"}
    command = [sys.executable, "-m", "tandem_cli", "up", "--json-ready", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ, process_group=0
    ) as process:
        try:
            yield process, environ
        finally:
            process.kill()


@pytest.fixture
def up(short_tmp_path: Path) -> Iterator[Up]:
    with run_up(short_tmp_path, *ENGINE) as (process, environ):
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Up(process, json.loads(line), environ)


@pytest.fixture
def short_tmp_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A path that leaves room for a socket's name."""
    return tmp_path_factory.mktemp("up")


def test_a_stack_serves_heals_and_leaves_nothing(up, short_tmp_path, is_alive, eventually):
    # It says where everything is, and everything is there.
    assert set(up.ready["processes"]) == {"redis", "router", "planner", "prefill-1", "decode-1", "frontend"}
    assert all(map(is_alive, up.pids()))
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
        f"http://{up.ready['http_address']}/v1/models", timeout=10
    ) as response:
        assert json.load(response)["data"][0]["id"] == up.ready["model"]

    # The other commands find it without flags.
    answer = up.tandem("chat", "--max-tokens", "5", "Hello")
    assert (answer.returncode, answer.stdout.strip() != "") == (0, True), answer.stderr
    assert "5 tokens" in answer.stderr
    piped = up.tandem("chat", "--max-tokens", "5", stdin="Hello")
    assert piped.stdout == answer.stdout
    top = up.tandem("top", "--once")
    assert "decode-1" in top.stdout, top.stderr
    with Client(up.ready["grpc_address"]) as client:
        request_id = client.chat("Hello", model=up.ready["model"], max_tokens=5).request_id
    explained = up.tandem("explain", request_id)
    assert "Chosen: decode-1" in explained.stdout, explained.stderr
    tried = up.tandem("explain", "--prompt", "Hello " * 50)
    assert "Chosen: decode-1" in tried.stdout, tried.stderr

    # A crashed worker comes back.
    os.kill(up.ready["processes"]["decode-1"]["pid"], signal.SIGKILL)
    lines = iter(up.process.stderr.readline, "")
    assert any("decode-1" in line and "signal 9" in line for line in lines)
    assert any("decode-1 is back" in line for line in lines)

    # Ctrl-C stops all of it, quickly.
    started_s = time.monotonic()
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(10) == 0
    assert time.monotonic() - started_s < 7
    eventually(lambda: not any(map(is_alive, up.pids())))
    assert list((short_tmp_path / "tmp").iterdir()) == []
    assert list((short_tmp_path / "run").iterdir()) == []


def test_nothing_survives_a_kill_and_the_next_command_cleans_up(up, short_tmp_path, is_alive, eventually):
    up.process.kill()
    eventually(lambda: not any(map(is_alive, up.pids())))
    assert up.tandem("top", "--once").returncode == 2
    assert list((short_tmp_path / "tmp").iterdir()) == []
    assert list((short_tmp_path / "run").iterdir()) == []


def test_a_setting_that_a_service_refuses_ends_everything_with_its_words(short_tmp_path):
    with run_up(short_tmp_path, *ENGINE, "--setting", "worker.max_sequences=0") as (process, _):
        output, errors = process.communicate(timeout=START_S)
    assert process.returncode == 1
    assert output == ""
    assert "max_sequences = 0" in errors
    assert "did not start" in errors
    assert "Traceback" not in errors
    assert list((short_tmp_path / "tmp").iterdir()) == []


def test_an_interrupt_while_it_starts_leaves_nothing(short_tmp_path, eventually):
    with run_up(short_tmp_path, *ENGINE) as (process, _):
        assert "redis is ready" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert list((short_tmp_path / "tmp").iterdir()) == []
