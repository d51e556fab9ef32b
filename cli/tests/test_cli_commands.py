"""The command line: help, errors in one line, and what it prints."""

from __future__ import annotations

import io
import json
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.console import Console
from tandem_cli.commands.up import parse_settings
from tandem_cli.local_stack import StackAddresses
from tandem_cli.router_access import RouterPlace, place_of_router
from tandem_cli.run_file import RunRecord
from tandem_cli.shipped_model import find_shipped_model
from tandem_cli.supervisor import Crashed, ProcessState, Ready, Started, StartFailed
from tandem_cli.up_console import ServedModel, UpConsole, curl_line, ready_line, short_context_line
from tandem_common.config import ConfigError

ADDRESSES = StackAddresses(
    http_address="127.0.0.1:8000",
    grpc_address="127.0.0.1:8001",
    router_address="127.0.0.1:4711",
    redis_url="unix:///run/redis.sock",
    run_dir=Path("/run/x"),
    log_dir=Path("/run/x/logs"),
)
PROCESSES = {
    "frontend": ProcessState(
        name="frontend",
        pid=12,
        facts={"ready": "frontend", "http_address": "127.0.0.1:8000", "metrics_port": 9},
        num_restarts=0,
        log_path=Path("/run/x/logs/frontend.log"),
    )
}
STACK = RunRecord(
    pid=1,
    model="tiny",
    http_address="127.0.0.1:8000",
    grpc_address="127.0.0.1:8001",
    router_address="127.0.0.1:4711",
    redis_url="unix:///run/redis.sock",
    cluster="c",
    cluster_secret="0123456789abcdef",
    run_dir="",
)


def tandem(*arguments: str, tmp_path: Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path), "COLUMNS": "120"}
    return subprocess.run(
        [sys.executable, "-m", "tandem_cli", *arguments],
        input=stdin, capture_output=True, text=True, timeout=60, env=environ, check=False,
    )  # fmt: skip


def test_help_names_every_command(tmp_path):
    result = tandem("--help", tmp_path=tmp_path)
    assert result.returncode == 0
    for command in ("up", "chat", "doctor", "explain", "top"):
        assert f" {command} " in result.stdout


def test_help_of_up_names_every_option(tmp_path):
    result = tandem("up", "--help", tmp_path=tmp_path)
    for option in ("--model", "--prefill", "--decode", "--aggregated", "--http-port", "--redis", "--log-dir"):
        assert option in result.stdout


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("up", "--decode", "0"), "--decode"),
        (("up", "--model", "/nonexistent/model"), "/nonexistent/model"),
        (("chat", "--address", "nowhere", "hi"), "HOST:PORT"),
        (("chat", "--address", "127.0.0.1:9", "hi"), "tandem up"),
        (("explain",), "--prompt"),
        (("explain", "req-1"), "tandem up"),
        (("top", "--once", "--router", "127.0.0.1:9"), "127.0.0.1:9"),
        (("top", "--once", "--redis", "unix:///nonexistent.sock"), "--redis"),
    ],
)
def test_what_cannot_work_ends_with_one_line_that_names_it(tmp_path, arguments, named):
    result = tandem(*arguments, tmp_path=tmp_path)
    assert result.returncode == 2
    assert named in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" not in result.stderr


def test_a_port_that_is_used_is_an_error_with_the_fix(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        result = tandem("up", "--http-port", port, tmp_path=tmp_path)
    assert result.returncode == 2
    assert f"port {port} is used by another program" in result.stderr


def test_settings_are_given_by_service_and_name():
    assert parse_settings(["worker.max-sequences=3", "worker.labels=rack=7", "router.policy=random"]) == {
        "worker": {"max_sequences": "3", "labels": "rack=7"},
        "router": {"policy": "random"},
    }


@pytest.mark.parametrize("text", ["worker", "worker.=3", "max_sequences=3", "redis.port=1"])
def test_a_setting_without_service_or_value_is_refused(text):
    with pytest.raises(typer.BadParameter, match=r"SERVICE\.NAME=VALUE"):
        parse_settings([text])


def test_the_curl_line_survives_a_shell():
    program, url, *rest = shlex.split(curl_line("127.0.0.1:8000", "it's"))
    assert (program, url) == ("curl", "http://127.0.0.1:8000/v1/chat/completions")
    assert json.loads(rest[rest.index("-d") + 1])["model"] == "it's"


def test_the_ready_line_holds_every_address_and_pid():
    line = json.loads(ready_line("tiny", ADDRESSES, PROCESSES))
    assert line["http_address"] == "127.0.0.1:8000"
    assert line["pid"] == os.getpid()
    assert line["processes"]["frontend"]["pid"] == 12
    assert line["processes"]["frontend"]["metrics_port"] == 9


def test_plain_output_has_a_line_for_everything_that_happens():
    output = io.StringIO()
    with UpConsole(Console(file=output, width=80)) as console:
        console.on_event(Started(name="router"))
        console.on_event(Ready(name="router", after_s=0.5, is_restart=False))
        console.on_event(Crashed(name="router", reason="was ended by signal 9", restart_in_s=0.5))
        console.on_event(Ready(name="router", after_s=0.5, is_restart=True))
    console.running(ServedModel(name="tiny", context_tokens=4096), ADDRESSES, PROCESSES)
    text = output.getvalue()
    for part in ("router is ready", "signal 9; starting it again in 0.5 s", "router is back", "Ctrl-C stops"):
        assert part in text
    # Unwrapped, however narrow the terminal is.
    assert f"  {curl_line('127.0.0.1:8000', 'tiny')}" in text.splitlines()


def test_a_cache_smaller_than_the_context_is_mentioned_with_the_fix():
    facts = {"ready": "worker", "max_context_tokens": 4672}
    worker = ProcessState(
        name="decode-1", pid=1, facts=facts, num_restarts=0, log_path=Path("/run/x/logs/d.log")
    )
    processes = {**PROCESSES, "decode-1": worker}
    line = short_context_line(ServedModel(name="m", context_tokens=40960), processes)
    assert line is not None
    for part in ("4,672", "40,960", "--kv-cache-mib"):
        assert part in line
    assert short_context_line(ServedModel(name="m", context_tokens=4672), processes) is None


def test_a_terminal_sees_progress_that_disappears():
    output = io.StringIO()
    with UpConsole(Console(file=output, width=80, force_terminal=True)) as console:
        console.on_event(Started(name="router"))
    assert "waiting for router" in output.getvalue()


def test_a_failed_start_is_explained_in_the_programs_own_words():
    output = io.StringIO()
    console = UpConsole(Console(file=output, width=80))
    console.failed(
        StartFailed("decode-1", "ended with exit code 2", returncode=2, log_tail=("noise", "bad dtype"))
    )
    console.failed(StartFailed("router", "was ended by signal 11", returncode=-11, log_tail=("one", "two")))
    text = output.getvalue()
    assert "decode-1 did not start: bad dtype" in text
    assert "noise" not in text
    assert "router did not start: it was ended by signal 11" in text
    assert "    one\n    two\n" in text


def test_the_router_is_looked_for_where_the_flags_say_then_where_the_stack_is():
    assert place_of_router("h:1", "redis://x", "c", STACK) == RouterPlace(address="h:1")
    assert place_of_router(None, "redis://x", "c", STACK) == RouterPlace(redis_url="redis://x", cluster="c")
    assert place_of_router(None, None, "default", STACK) == RouterPlace(
        redis_url=STACK.redis_url, cluster="c"
    )
    with pytest.raises(ConfigError, match="tandem up"):
        place_of_router(None, None, "default", None)


def test_the_shipped_model_is_found_upwards(tmp_path):
    model = tmp_path / "models" / "tandem-tiny"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert find_shipped_model([deep]) == model
    with pytest.raises(ConfigError, match="--model"):
        find_shipped_model([Path("/nonexistent")])
