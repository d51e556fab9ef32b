"""What dies is somebody else's problem: never the client's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

SIMULATED = (
    *("--engine", "simulated", "--setting", "worker.sim_decode_base_ms=10"),
    *("--setting", "worker.sim_prefill_token_ms=0.02"),
)
PROMPT = [5 + i % 700 for i in range(200)]


@pytest.fixture(scope="module")
def simulated(start_stack: Any) -> Iterator[Any]:
    with start_stack(*SIMULATED) as stack:
        yield stack


def stream(stack: Any, body: dict[str, Any]) -> Iterator[str]:
    """Text pieces of a streamed completion; fails on an error event."""
    full = {"model": stack.model, "stream": True, "temperature": 0, "ignore_eos": True, **body}
    with stack.client() as client, client.stream("POST", "/v1/completions", json=full) as response:
        assert response.status_code == 200
        for line in response.iter_lines():
            if line.startswith("data: {"):
                event = json.loads(line[6:])
                assert "error" not in event, event
                yield "".join(choice["text"] for choice in event["choices"])


def busy_decode_worker(stack: Any) -> str:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        for name in ("decode-1", "decode-2"):
            if any(request.phase == "decoding" for request in stack.state(name).requests):
                return name
    raise AssertionError("no worker decodes")


@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], ids=lambda s: s.name)
def test_a_stream_goes_on_with_the_same_tokens_when_its_decode_worker_goes(
    start_stack: Any, kill: signal.Signals
) -> None:
    with start_stack(*SIMULATED, "--setting", "frontend.token_timeout_s=2") as stack:
        whole = "".join(stream(stack, {"prompt": PROMPT, "max_tokens": 120}))
        pieces = stream(stack, {"prompt": PROMPT, "max_tokens": 120})
        text = "".join(next(pieces) for _ in range(20))
        victim = busy_decode_worker(stack)
        os.kill(stack.pid(victim), kill)
        text += "".join(pieces)
        assert text == whole
        stack.assert_quiet(without=(victim,))


def test_a_killed_decode_worker_changes_no_token_of_the_real_model(
    start_stack: Any, shipped_model: Path
) -> None:
    bodies = (
        {"prompt": "Once upon a time", "max_tokens": 400},
        {"prompt": "Once upon a time", "max_tokens": 400, "temperature": 0.9, "seed": 11},
    )
    with start_stack(
        "--model", str(shipped_model), "--prefill", "1", "--decode", "2", "--kv-cache-mib", "64"
    ) as stack:
        whole = ["".join(stream(stack, body)) for body in bodies]
        running = [stream(stack, body) for body in bodies]
        texts = ["".join(next(pieces) for _ in range(10)) for pieces in running]
        victim = busy_decode_worker(stack)
        stack.kill(victim)
        texts = [text + "".join(pieces) for text, pieces in zip(texts, running, strict=True)]
        assert texts == whole
        assert whole[0] != whole[1]
        assert '"num_migrations":1' in stack.log("frontend")
        stack.assert_quiet(without=(victim,))


def test_a_dead_prefill_worker_costs_time_and_nothing_else(start_stack: Any) -> None:
    with start_stack(
        "--prefill", "1", "--decode", "1", *SIMULATED, "--setting", "worker.sim_prefill_token_ms=2"
    ) as stack:
        expected = "".join(stream(stack, {"prompt": PROMPT, "max_tokens": 30}))
        stack.kill("prefill-1")
        assert "".join(stream(stack, {"prompt": [1, *PROMPT[1:]], "max_tokens": 30})) != expected
        assert "".join(stream(stack, {"prompt": PROMPT, "max_tokens": 30})) == expected
        stack.assert_quiet(without=("prefill-1",))


@pytest.mark.parametrize("victim", ["router", "planner"])
def test_requests_are_served_without_router_or_planner(start_stack: Any, victim: str) -> None:
    with start_stack(*SIMULATED) as stack:
        expected = "".join(stream(stack, {"prompt": PROMPT, "max_tokens": 60}))
        pieces = stream(stack, {"prompt": PROMPT, "max_tokens": 60})
        text = next(pieces)
        stack.kill(victim)
        text += "".join(pieces)
        assert text == expected
        assert "".join(stream(stack, {"prompt": PROMPT, "max_tokens": 60})) == expected
        stack.assert_quiet()


def test_requests_are_served_while_redis_is_gone_and_after_it_came_back_empty(start_stack: Any) -> None:
    with start_stack(*SIMULATED) as stack:
        expected = "".join(stream(stack, {"prompt": PROMPT, "max_tokens": 30}))
        stack.kill("redis")
        for _ in range(8):
            assert "".join(stream(stack, {"prompt": PROMPT, "max_tokens": 30})) == expected
            time.sleep(0.2)
        stack.assert_quiet()


def test_when_nobody_is_left_the_client_is_told_soon(start_stack: Any) -> None:
    with start_stack("--prefill", "0", "--decode", "1", *SIMULATED) as stack:
        os.kill(stack.pid("decode-1"), signal.SIGSTOP)
        start = time.monotonic()
        with stack.client() as client:
            response = client.post(
                "/v1/completions", json={"model": stack.model, "prompt": PROMPT, "max_tokens": 5}
            )
        assert response.status_code in (503, 504)
        assert response.json()["error"]["message"]
        assert time.monotonic() - start < 40
        os.kill(stack.pid("decode-1"), signal.SIGCONT)


def test_a_burst_of_short_and_cancelled_requests_leaves_nothing(simulated: Any) -> None:
    with simulated.client() as client:
        for attempt in range(30):
            body = {
                "model": simulated.model,
                "prompt": PROMPT[: 20 + 5 * attempt],
                "max_tokens": 40,
                "ignore_eos": True,
            }
            try:
                client.post("/v1/completions", json=body, timeout=0.01 + 0.01 * (attempt % 10))
            except httpx.TimeoutException:
                continue
    simulated.assert_quiet()


def leftovers(root_pid: int, run_dir: Path) -> list[str]:
    found = [str(run_dir)] if run_dir.exists() else []
    for process in psutil.process_iter(["pid", "cmdline"]):
        if str(run_dir) in " ".join(process.info["cmdline"] or ()):
            found.append(str(process.info))
    return found


@pytest.mark.parametrize("way", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_stopping_takes_less_than_five_seconds_and_leaves_nothing(
    start_stack: Any, way: signal.Signals
) -> None:
    shm_before = set(os.listdir("/dev/shm"))
    with start_stack(*SIMULATED) as stack:
        pids = [stack.pid(name) for name in stack.facts["processes"]]
        pieces = stream(stack, {"prompt": PROMPT, "max_tokens": 1000})
        next(pieces)
        start = time.monotonic()
        stack.process.send_signal(way)
        code = stack.process.wait(10)
        elapsed = time.monotonic() - start
    assert elapsed < 5
    assert code in (0, 130, 143)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
    assert not leftovers(stack.process.pid, Path(stack.facts["run_dir"]))
    assert set(os.listdir("/dev/shm")) <= shm_before


def test_nothing_survives_a_killed_supervisor(start_stack: Any) -> None:
    with start_stack(*SIMULATED) as stack:
        pids = [stack.pid(name) for name in stack.facts["processes"]]
        stack.process.kill()
        stack.process.wait(10)
        deadline = time.monotonic() + 10
        while any(psutil.pid_exists(pid) for pid in pids):
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_a_model_that_does_not_load_says_so_and_ends_everything(start_stack: Any, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["NoSuchModel"], "model_type": "nothing"}')
    result = subprocess.run(
        [
            os.sys.executable,
            "-m",
            "tandem_cli",
            "up",
            "--model",
            str(tmp_path),
            "--prefill",
            "0",
            "--decode",
            "1",
        ],  # type: ignore[attr-defined]
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode != 0
    assert "Traceback" not in result.stdout + result.stderr
