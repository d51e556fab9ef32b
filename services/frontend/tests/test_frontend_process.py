"""The process as a supervisor sees it: ready line, ports, signals, exit codes, and no torch inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

ENVIRONMENT = {"PATH": os.environ["PATH"], "TANDEM_CLUSTER_SECRET": "0123456789abcdef"}


def command(*flags: str) -> list[str]:
    return [sys.executable, "-m", "tandem_frontend", *flags]


def test_it_says_when_it_is_ready_and_stops_cleanly(model_dir: Path, redis_url: str):
    flags = ("--model", str(model_dir), "--http-port", "0", "--redis-url", redis_url, "--log-format", "json")
    process = subprocess.Popen(
        command(*flags), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        assert ready["ready"] == "frontend"
        base = f"http://{ready['http_address']}"
        with urllib.request.urlopen(f"{base}/live", timeout=5) as response:
            assert response.status == 200
        metrics = f"http://127.0.0.1:{ready['metrics_port']}/metrics"
        with urllib.request.urlopen(metrics, timeout=5) as response:
            assert b"tandem_frontend_requests" in response.read()
        try:
            urllib.request.urlopen(f"{base}/health", timeout=5)
            status = 200
        except urllib.error.HTTPError as error:
            status = error.code
        assert status == 503
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0
        assert all(json.loads(line) for line in log.splitlines() if line.startswith("{"))
    finally:
        process.kill()
        process.communicate()


def test_a_configuration_that_cannot_be_used_ends_it_with_the_fix():
    for flags, words in (((), "pass --model"), (("--model", "no-such-dir"), "not a directory")):
        ended = subprocess.run(command(*flags), env=ENVIRONMENT, capture_output=True, text=True, timeout=30)
        assert ended.returncode == 2
        assert words in ended.stderr


def test_it_imports_neither_torch_nor_transformers():
    program = (
        "import sys, tandem_frontend.__main__; "
        "bad = {'torch', 'transformers', 'numpy'} & sys.modules.keys(); sys.exit(str(bad) if bad else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert ended.returncode == 0, ended.stderr
