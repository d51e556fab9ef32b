"""NVIDIA Dynamo's frontend and mocker, to measure beside Tandem.

Its event sockets bind all interfaces, so this refuses to start it where there is any but loopback:

    unshare -n sh -c 'ip link set lo up; .venv/bin/python bench/frontend.py --dynamo DYNAMO_VENV/bin/python'
"""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from frontend_target import Target

_START_TIMEOUT_S = 60.0
_PLANES = ("--discovery-backend", "file", "--request-plane", "tcp", "--event-plane", "zmq")


@contextmanager
def running_dynamo(python: str, model: Path, step_ms: float, max_sequences: int) -> Iterator[Target]:
    """Frontend with KV router and one mocker; paced (its own pace, about 6 ms a step) unless `step_ms` is 0."""
    others = {name for _, name in socket.if_nameindex()} - {"lo"}
    if others:
        raise SystemExit(f"Dynamo binds all interfaces; run this where only lo is, not {sorted(others)}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as directory:
        environ = {**os.environ, "DYN_FILE_KV": f"{directory}/kv", "DYN_LOG": "error", "PYTHONPATH": ""}
        frontend = [
            python,
            "-m",
            "dynamo.frontend",
            *_PLANES,
            "--router-mode",
            "kv",
            "--http-port",
            str(port),
        ]
        mocker = [
            *(
                python,
                "-m",
                "dynamo.mocker",
                *_PLANES,
                "--model-path",
                str(model),
                "--model-name",
                model.name,
            ),
            *("--speedup-ratio", "1" if step_ms else "1000", "--max-num-seqs", str(max_sequences)),
        ]
        with open(f"{directory}/log", "wb") as log:
            processes = [
                subprocess.Popen(argv, env=environ, cwd=directory, stdout=log, stderr=log)
                for argv in (frontend, mocker)
            ]
        try:
            _wait_for(port, model.name)
            yield Target(
                name="dynamo",
                host="127.0.0.1",
                port=port,
                model=model.name,
                pids={"frontend": processes[0].pid, "worker": processes[1].pid},
            )
        finally:
            for process in processes:
                process.kill()
                process.wait()


def _wait_for(port: int, model: str) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as response:
                if model.encode() in response.read():
                    return
        except (urllib.error.URLError, OSError):
            pass
        time.sleep(0.2)
    raise SystemExit("Dynamo did not become ready")
