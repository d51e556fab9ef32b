"""A service as a process: its ready line, its logs, its signals and its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

SERVICE = """
import asyncio, sys
from tandem_common.config import ServiceConfig
from tandem_common.logs import bound_request, get_logger
from tandem_common.metrics import start_metrics_server
from tandem_common.service import Lifecycle, run_service
from tandem_common.telemetry import current_traceparent, span

async def serve(config, lifecycle):
    port = start_metrics_server(config.host, config.metrics_port)
    with bound_request("req-1"), span("outer"):
        with span("inner", current_traceparent(), size=3):
            get_logger("test").info("working", value="a\\nb")
    lifecycle.ready(metrics_port=port)
    await lifecycle.stopping()
    if config.cluster == "hangs":
        await asyncio.sleep(60)

run_service(ServiceConfig, "router", serve)
"""


def start(*flags: str, **environ: str) -> subprocess.Popen[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    return subprocess.Popen(
        [sys.executable, "-c", SERVICE, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**clean, **environ},
    )


def ready(process: subprocess.Popen[str]) -> dict[str, object]:
    assert process.stdout is not None
    facts: dict[str, object] = json.loads(process.stdout.readline())
    return facts


def test_it_says_that_it_is_ready_logs_json_with_the_request_id_and_stops_cleanly() -> None:
    process = start()
    facts = ready(process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=10)
    assert (facts["ready"], process.returncode, out) == ("router", 0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    assert lines[0]["event"] == "working"
    assert (lines[0]["request_id"], lines[0]["service"], lines[0]["component"]) == ("req-1", "router", "test")
    assert lines[-1]["event"] == "stopping"


def test_a_second_signal_ends_it_at_once() -> None:
    process = start("--cluster", "hangs")
    ready(process)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "stopping" not in process.stderr.readline():
        pass
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 128 + signal.SIGINT


def test_a_wrong_setting_is_one_line_and_exit_code_2() -> None:
    process = start("--port", "many")
    _, err = process.communicate(timeout=10)
    assert process.returncode == 2
    assert err == "tandem-router: --port = 'many': expected a whole number\n"


def test_metrics_that_cannot_be_served_are_a_wrong_setting() -> None:
    first = start()
    taken = str(ready(first)["metrics_port"])
    second = start("--metrics-port", taken)
    _, err = second.communicate(timeout=10)
    first.terminate()
    first.communicate(timeout=10)
    assert second.returncode == 2
    assert f"metrics_port = {taken}" in err


def test_spans_go_to_the_file_that_was_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "spans.jsonl"
    process = start(OTEL_EXPORTER_FILE_PATH=str(path))
    ready(process)
    process.terminate()
    process.communicate(timeout=10)
    inner, outer = (json.loads(line) for line in path.read_text().splitlines())
    assert (inner["name"], outer["name"]) == ("inner", "outer")
    assert inner["parent_id"] == outer["context"]["span_id"]
    assert inner["context"]["trace_id"] == outer["context"]["trace_id"]
    assert re.fullmatch("tandem-router", inner["resource"]["attributes"]["service.name"])
