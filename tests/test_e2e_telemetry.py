"""One request can be followed through every service; what it said can be read in none."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import httpx
from tandem_client import Client

KEY = "sk-canary-key-7261"
SAID = "xylophonecanary"


def spans(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_request_is_one_trace_through_all_services_and_its_text_and_key_are_nowhere(
    start_stack: Any, tmp_path: Path
) -> None:
    keys, trace_file = tmp_path / "keys", tmp_path / "spans.jsonl"
    keys.write_text(f"{hashlib.sha256(KEY.encode()).hexdigest()} acme\n")
    options = (
        *("--prefill", "1", "--decode", "1", "--engine", "simulated", "--policy", "round_robin"),
        *("--setting", f"frontend.api_keys_file={keys}", "--log-level", "debug"),
    )
    with start_stack(*options, environ={"OTEL_EXPORTER_FILE_PATH": str(trace_file)}) as stack:
        body = {
            "model": stack.model,
            "messages": [{"role": "user", "content": f"{SAID} " * 100}],
            "max_tokens": 5,
        }
        assert httpx.post(f"{stack.url}/v1/chat/completions", json=body).status_code == 401
        response = httpx.post(
            f"{stack.url}/v1/chat/completions",
            json=body,
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=30,
        )
        assert response.status_code == 200
        with Client(stack.grpc_address, api_key=KEY) as client:
            client.chat(f"{SAID} again " * 50, model=stack.model, max_tokens=5)
        services = {"tandem-frontend", "tandem-router", "tandem-worker"}
        deadline = time.monotonic() + 10
        while True:
            by_trace: dict[str, set[tuple[str, str]]] = {}
            for span in spans(trace_file):
                service = span["resource"]["attributes"]["service.name"]
                by_trace.setdefault(span["context"]["trace_id"], set()).add((service, span["name"]))
            whole = [
                names
                for names in by_trace.values()
                if {service for service, _ in names} == services
                and any("Prefill" in name for _, name in names)
            ]
            if len(whole) >= 2:
                break
            assert time.monotonic() < deadline, by_trace
            time.sleep(0.1)
        ports = [
            facts["metrics_port"] for facts in stack.facts["processes"].values() if "metrics_port" in facts
        ]
        metrics = "".join(httpx.get(f"http://127.0.0.1:{port}/metrics").text for port in ports)
        logs = "".join(path.read_text() for path in stack.log_dir.iterdir())
        stack.assert_quiet()
    assert response.headers["x-request-id"] in logs
    for place in (logs, metrics, trace_file.read_text()):
        assert place
        assert SAID not in place
        assert KEY not in place


def test_two_tenants_share_no_cached_block(start_stack: Any, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("".join(f"{hashlib.sha256(k.encode()).hexdigest()} tenant-{k}\n" for k in ("one", "two")))
    options = (
        "--prefill",
        "0",
        "--decode",
        "1",
        "--engine",
        "simulated",
        "--setting",
        f"frontend.api_keys_file={keys}",
    )
    with start_stack(*options) as stack:

        def cached_tokens(key: str) -> int:
            with Client(stack.grpc_address, api_key=key) as client:
                prompt = [5 + i % 300 for i in range(400)]
                return client.generate(prompt, model=stack.model, max_tokens=2).usage.cached_tokens

        assert cached_tokens("one") == 0
        assert cached_tokens("one") > 300
        assert cached_tokens("two") == 0
        stack.assert_quiet()
