"""The process as a supervisor sees it: ready line, ports, signals, exit codes, and no torch inside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
import redis
from tandem.v1 import cluster_pb2, inference_pb2, inference_pb2_grpc
from tandem_common.keys import Keys

KEPT = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
ENVIRONMENT = {**KEPT, "TANDEM_CLUSTER_SECRET": "0123456789abcdef"}


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


def requests_of(metrics_port: int, route: str) -> int:
    """Requests for what ends in `route` that one process has counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(
        int(float(line.split()[-1]))
        for line in lines
        if line.startswith("tandem_frontend_requests_total{") and f'{route}"' in line
    )


def test_workers_share_the_ports_and_go_with_the_first_process(model_dir: Path, redis_url: str):
    flags = ("--model", str(model_dir), "--http-port", "0", "--redis-url", redis_url, "--cluster", "siblings")
    process = subprocess.Popen(
        command(*flags, "--workers", "2"), env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        client = redis.Redis.from_url(redis_url)
        deadline = time.monotonic() + 10
        while len(ids := client.smembers(Keys("siblings").services("frontend"))) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        cards = [
            cluster_pb2.ServiceCard.FromString(
                client.get(Keys("siblings").service("frontend", name.decode()))
            )
            for name in ids
        ]
        assert {card.http_address for card in cards} == {ready["http_address"]}
        assert {card.address for card in cards} == {ready["address"]}
        assert len({card.metrics_port for card in cards}) == 2
        counts = [0, 0]
        for _ in range(40):
            with urllib.request.urlopen(f"http://{ready['http_address']}/live", timeout=5) as response:
                assert response.status == 200
        for index, card in enumerate(cards):
            counts[index] = requests_of(card.metrics_port, "/live")
        assert sum(counts) == 40
        assert all(counts), "the kernel shares connections out"
        for _ in range(40):
            # A channel of its own each time: channels to one address share a connection otherwise.
            options = (("grpc.use_local_subchannel_pool", 1),)
            with grpc.insecure_channel(ready["address"], options) as channel:
                stub = inference_pb2_grpc.InferenceServiceStub(channel)
                stub.ListModels(inference_pb2.ListModelsRequest(), timeout=5)
        calls = [requests_of(card.metrics_port, "/ListModels") for card in cards]
        assert sum(calls) == 40
        assert all(calls), "connections of gRPC are shared out too"
        process.kill()
        process.wait()
        with pytest.raises(OSError, match="refused"):
            while time.monotonic() < deadline + 10:
                urllib.request.urlopen(f"http://{ready['http_address']}/live", timeout=5).close()
                time.sleep(0.05)
    finally:
        process.kill()
        process.communicate()
