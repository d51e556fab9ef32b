"""`tandem bench` against a small server."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer, Reply, answer, error, running_openai_server
from tandem_cli.__main__ import app
from tandem_common.config import ConfigError
from typer.testing import CliRunner

SHORT = ("--warmup", "0", "--input-tokens", "47", "--output-tokens", "5")


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with running_openai_server() as running:
        yield running


def invoke(*arguments: str, exit_code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(app, ["bench", *arguments], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    return result.stdout, result.stderr


def points(*arguments: str, exit_code: int = 0) -> list[dict[str, Any]]:
    return list(json.loads(invoke(*arguments, "--json", "-", exit_code=exit_code)[0])["points"])


def test_a_sweep_gives_a_table_json_and_a_page_that_loads_nothing(
    server: OpenAIServer, tmp_path: Path
) -> None:
    figures, page = tmp_path / "f.json", tmp_path / "p.html"
    arguments = ("--url", server.url, "--concurrency", "1,2", "--requests", "6", *SHORT)
    output, _ = invoke(*arguments, "--json", str(figures), "--html", str(page))
    assert "1 client" in output
    assert "2 clients" in output
    for word in (
        "goodput, requests/s",
        "TTFT p50 / p99, ms",
        "ITL p50",
        "TPOT p50",
        "E2E p50",
        "µs of CPU per token",
    ):
        assert word in output
    assert "Prompts: 47 tokens" in output
    assert "Answers: 5 tokens, counted by the server's usage" in output
    report = json.loads(figures.read_text())
    assert [(point["num_sent"], point["num_good"]) for point in report["points"]] == [(6, 6), (6, 6)]
    assert report["model"] == "fake"
    html = page.read_text()
    assert html.count("<svg") == 12  # six over the load, three of percentiles, three over time
    assert not re.search(r"<script|<link|<img|@import|src=|href=|url\(", html)


def test_an_open_loop_and_a_trace_send_what_they_should(server: OpenAIServer, tmp_path: Path) -> None:
    (point,) = points("--url", server.url, "--rate", "50", "--requests", "5", "--arrivals", "even", *SHORT)
    assert point["requests_per_s"] == pytest.approx(50, rel=0.25)
    trace = tmp_path / "trace.csv"
    trace.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2023-11-16 18:15:46.6805900,30,4\n2023-11-16 18:15:47.6805900,60,6\n"
    )
    (point,) = points("--url", server.url, "--trace", str(trace), "--speed", "5")
    assert (point["num_done"], point["answer_tokens"]["total"]) == (2, 10)
    assert (point["prompt_tokens"]["least"], point["prompt_tokens"]["most"]) == (31, 59)
    assert point["window_s"] == pytest.approx(0.4)


def test_the_same_seed_asks_the_same(server: OpenAIServer) -> None:
    asked = []
    for seed in ("1", "1", "2"):
        server.bodies.clear()
        points("--url", server.url, "--concurrency", "1", "--requests", "3", "--seed", seed, *SHORT)
        asked.append([body["messages"] for body in server.bodies])
    assert asked[0] == asked[1]
    assert asked[0] != asked[2]


def test_refusals_are_reported_and_a_server_that_answers_nothing_fails_the_command(
    server: OpenAIServer,
) -> None:
    probes = [answer, answer]
    server.respond = lambda body: probes.pop(0)(body) if probes else error(429, "busy", Retry_After="0")
    arguments = ("--url", server.url, "--rate", "100", "--requests", "4", *SHORT)
    output, _ = invoke(*arguments, exit_code=1)
    assert "4 × HTTP 429: busy (Retry-After 0 s)" in output
    assert "No request was answered" in output


def test_without_usage_tokens_are_events_and_the_report_says_so(server: OpenAIServer) -> None:
    def without_usage(body: dict[str, Any]) -> Reply:
        body.pop("stream_options", None)
        return answer(body)

    server.respond = without_usage
    output, _ = invoke("--url", server.url, "--concurrency", "1", "--requests", "2", *SHORT)
    assert "counted by events with text" in output
    assert "lengths of prompts are in words" in " ".join(output.split())


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (("--concurrency", "1", "--rate", "1"), "only one of"),
        (("--concurrency", "1.5"), "whole"),
        (("--rate", "0"), "above 0"),
        (("--rate", "fast"), "separated by commas"),
        (("--input-tokens", "5-2"), "--input-tokens '5-2'"),
        (("--trace", "none.jsonl"), "cannot read the trace"),
        (("--url", "ftp://host"), "not an address"),
        (("--html", "/nowhere/page.html"), "no directory /nowhere"),
        (("--model", "other"), "no model 'other'; there are: fake"),
        (("--url", "http://127.0.0.1:9"), "nothing answers"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_the_reason(
    server: OpenAIServer, arguments: tuple[str, ...], wrong: str
) -> None:
    server.respond = lambda body: answer(body) if body["model"] == "fake" else error(404, "unknown model")
    with pytest.raises(ConfigError, match=wrong):
        CliRunner().invoke(app, ["bench", "--url", server.url, *arguments], catch_exceptions=False)


def test_a_key_comes_from_the_environment_and_is_in_no_output(
    server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    page = tmp_path / "p.html"
    arguments = ("--url", server.url, "--concurrency", "1", "--requests", "1", *SHORT, "--html", str(page))
    output = "".join(invoke(*arguments)) + page.read_text()
    assert set(server.keys) == {"Bearer sesame"}
    assert "sesame" not in output


def test_ctrl_c_prints_what_was_measured_so_far(server: OpenAIServer) -> None:
    arguments = ("--url", server.url, "--concurrency", "1", "--duration", "60", *SHORT, "--json", "-")
    process = subprocess.Popen(
        [sys.executable, "-m", "tandem_cli", "bench", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )

    def interrupt_soon(body: dict[str, Any]) -> Reply:
        if len(server.bodies) == 8:
            os.kill(process.pid, signal.SIGINT)
        return answer(body)

    server.respond = interrupt_soon
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    (point,) = json.loads(output)["points"]
    assert point["was_interrupted"]
    assert point["num_done"] >= 4
    assert "Traceback" not in errors
