"""`tandem simulate`."""

import json
import sys
from pathlib import Path

import pytest
from tandem_cli.__main__ import app
from tandem_common.config import ConfigError
from typer.testing import CliRunner

MIX = ["simulate", "--mix", "chat", "--rate", "20", "--requests", "40", "--prefill", "1", "--decode", "1"]


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_a_table_json_and_a_page_come_out(tmp_path: Path) -> None:
    figures, page = tmp_path / "figures.json", tmp_path / "page.html"
    output = invoke(*MIX, "--policy", "predictive,random", "--json", str(figures), "--html", str(page))
    assert [line.split()[0] for line in output.splitlines()] == ["policy", "predictive", "random"]
    runs = json.loads(figures.read_text())["runs"]
    assert [run["num_done"] for run in runs] == [40, 40]
    assert page.read_text().startswith("<!doctype html>")


def test_the_same_seed_gives_the_same_json() -> None:
    first, second, other = (invoke(*MIX, "--json", "-", "--seed", seed) for seed in ("3", "3", "4"))
    assert first == second
    assert first != other


def test_routers_can_be_several_and_set() -> None:
    (run,) = json.loads(
        invoke(
            *MIX,
            "--routers",
            "2",
            "--router",
            "max_worker_queue_ms=1",
            "--router",
            "policy=random",
            "--json",
            "-",
        )
    )["runs"]
    assert run["num_done"] == 40


def test_aggregated_workers_can_be_kept_from_handing_over() -> None:
    (run,) = json.loads(invoke(*MIX[:7], "--aggregated", "2", "--no-handoffs", "--json", "-"))["runs"]
    assert run["num_done"] == 40
    assert (run["num_handoffs"], run["local_prefill_share"]) == (0, 1.0)


def test_half_of_the_workers_can_be_slow_and_one_can_die() -> None:
    text = invoke(*MIX[:7], "--aggregated", "4", "--slow", "0.5", "--kill", "both-0003@0.5", "--json", "-")
    (run,) = json.loads(text)["runs"]
    assert [(group["count"], group["speed"]) for group in run["workers"]] == [(2, 1.0), (2, 0.5)]
    assert run["num_done"] == 40


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        (["simulate", "--prefill", "1"], "--trace FILE or --mix"),
        (["simulate", "--mix", "none"], "must be one of"),
        (["simulate", "--trace", "none.jsonl", "--decode", "1"], "cannot read the trace"),
        ([*MIX, "--kill", "decode"], "decode-0003@120"),
        ([*MIX, "--policy", "best"], "best"),
        ([*MIX, "--load", "0"], "above 0"),
        ([*MIX, "--router", "speed=1"], "a setting of tandem-router"),
        ([*MIX, "--router", "max_waiting=many"], "is not a int"),
        (["simulate", "--mix", "chat"], "nobody decodes"),
    ],
)
def test_what_cannot_be_simulated_is_refused_with_the_reason(arguments: list[str], wrong: str) -> None:
    with pytest.raises(ConfigError, match=wrong):
        CliRunner().invoke(app, arguments, catch_exceptions=False)


def test_without_the_simulator_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "tandem_sim"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tandem_sim", None)
    with pytest.raises(ConfigError, match="install the package tandem-sim"):
        CliRunner().invoke(app, MIX, catch_exceptions=False)
