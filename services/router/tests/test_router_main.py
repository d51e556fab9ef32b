from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from typing import Any

import pytest


def start(*flags: str) -> subprocess.Popen[bytes]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "tandem_router", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environ,
    )


def test_a_router_process_says_where_it_is_serves_metrics_and_stops_cleanly(redis_url: str) -> None:
    process = start("--redis-url", redis_url)
    try:
        assert process.stdout is not None
        ready: dict[str, Any] = json.loads(process.stdout.readline())
        assert ready["ready"] == "router"
        assert ready["address"].startswith("127.0.0.1:")
        with urllib.request.urlopen(f"http://127.0.0.1:{ready['metrics_port']}/metrics", timeout=5) as page:
            families = page.read().decode()
        for name in (
            'tandem_router_decisions_total{policy="predictive",prefill="remote"} 0.0',
            'tandem_router_refusals_total{code="UNAVAILABLE"} 0.0',
            "tandem_router_choose_seconds_bucket",
            "tandem_router_index_blocks",
            "tandem_router_view_stale_ms",
            "tandem_router_kv_events_applied_total",
            'tandem_router_kv_records_skipped_total{reason="malformed"} 0.0',
        ):
            assert name in families
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=10)
        assert process.returncode == 0, err.decode()
        assert out == b""
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--policy", "best"), ("policy", "best", "predictive")),
        (("--booking-max-age-s", "0"), ("booking_max_age_s", "at least")),
    ],
)
def test_a_bad_setting_ends_the_program_with_its_name_and_the_fix(
    flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    process = start(*flags)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 2
    for word in words:
        assert word in err.decode()
