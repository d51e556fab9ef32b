"""`tandem bench` against a whole stack."""

import json
import subprocess
import sys
from typing import Any


def bench(url: str, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "tandem_cli", "bench", "--url", url, *arguments, "--json", "-"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 0, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_prompts_and_answers_have_the_wanted_lengths_on_both_endpoints(stack: Any) -> None:
    for endpoint in ("chat", "completions"):
        report = bench(
            stack.url,
            *("--endpoint", endpoint, "--concurrency", "4", "--requests", "12", "--warmup", "0"),
            *("--input-tokens", "200", "--output-tokens", "16"),
        )
        (point,) = report["points"]
        assert report["notes"] == []
        assert (point["num_sent"], point["num_done"], point["failures"]) == (12, 12, {})
        assert (point["answer_tokens"]["least"], point["answer_tokens"]["most"]) == (16, 16)
        assert 180 <= point["prompt_tokens"]["mean"] <= 220
        assert point["tokens_counted_by"] == "the server's usage"
        assert point["cached_share"] < 0.1  # prompts differ from their first words on
        assert point["itl_s"]["p50"] is not None


def test_conversations_and_shared_beginnings_are_found_in_the_cache(stack: Any) -> None:
    arguments = ("--concurrency", "2", "--requests", "12", "--warmup", "0", "--output-tokens", "8")
    (turns,) = bench(stack.url, *arguments, "--turns", "3", "--input-tokens", "150")["points"]
    (shared,) = bench(stack.url, *arguments, "--shared-prefix", "400", "--input-tokens", "60")["points"]
    assert (turns["num_done"], shared["num_done"]) == (12, 12)
    assert turns["prompt_tokens"]["most"] > 2 * turns["prompt_tokens"]["least"]
    assert turns["cached_share"] > 0.2
    assert shared["cached_share"] > 0.2
