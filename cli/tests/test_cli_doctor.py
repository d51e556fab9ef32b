"""What the doctor finds, and what it advises."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from tandem_cli import doctor as checks
from tandem_cli.doctor import Level


def test_a_machine_that_runs_these_tests_lacks_nothing():
    findings = list(checks.run_checks(None, ()))
    assert [finding for finding in findings if finding.level is Level.MISSING] == []
    assert {"Python", "torch", "C compiler", "Redis", "shared memory", "machine"} <= {
        finding.subject for finding in findings
    }


def test_every_problem_comes_with_what_mends_it():
    with socket.create_server(("127.0.0.1", 0)) as server:
        problems = [
            checks.check_python((3, 10, 9)),
            *checks.check_packages(lambda name: None),
            checks.check_compiler(None),
            checks.check_redis(None),
            checks.check_port(server.getsockname()[1]),
            checks.check_temporary_directory(Path("/nonexistent")),
            checks.check_resources(2, 0.5),
            *checks.check_model("/nonexistent/model"),
            checks.check_hub("http://127.0.0.1:9"),
        ]
    assert all(finding.level is not Level.OK and finding.fix for finding in problems)


def test_a_model_is_described(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"\0" * 16)
    (finding,) = checks.check_model(str(tmp_path))
    assert finding.level is Level.OK
    assert "llama" in finding.found


@pytest.mark.parametrize("absent", ["config.json", "tokenizer.json", "model.safetensors"])
def test_what_a_model_lacks_is_named(tmp_path, absent):
    for name in {"config.json", "tokenizer.json", "model.safetensors"} - {absent}:
        (tmp_path / name).write_text("{}")
    (finding,) = checks.check_model(str(tmp_path))
    assert finding.level is Level.MISSING
    assert absent.replace("model.", "*.") in finding.found


def test_a_configuration_that_is_not_json_is_found(tmp_path):
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (tmp_path / name).write_text("no JSON")
    (finding,) = checks.check_model(str(tmp_path))
    assert finding.level is Level.MISSING
    assert "cannot be read" in finding.found
