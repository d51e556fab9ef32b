"""How other commands find a running stack, and what happens to the files of dead ones."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from tandem_cli.run_file import RUN_DIR_PREFIX, RunFile, RunRecord, run_files_dir, running_stacks
from tandem_common.config import ConfigError


def record(**fields: object) -> RunRecord:
    given = {
        "pid": os.getpid(),
        "model": "tiny",
        "http_address": "127.0.0.1:8000",
        "grpc_address": "127.0.0.1:8001",
        "router_address": "127.0.0.1:4711",
        "redis_url": "unix:///run/redis.sock",
        "cluster": "default",
        "cluster_secret": "0123456789abcdef",
        "run_dir": "",
        **fields,
    }
    return RunRecord(**given)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "tandem-0"


def test_a_running_stack_is_found_and_a_stopped_one_is_not(directory):
    with RunFile(directory) as file:
        file.write(record())
        assert running_stacks(directory) == [record()]
    assert running_stacks(directory) == []
    assert not directory.exists()


def test_the_latest_stack_comes_first(directory):
    with RunFile(directory) as first, RunFile(directory) as second:
        first.write(record(model="first"))
        second.write(record(model="second"))
        paths = sorted(directory.iterdir(), key=lambda path: b"second" in path.read_bytes())
        os.utime(paths[0], (1, 1))
        assert [stack.model for stack in running_stacks(directory)] == ["second", "first"]
        os.utime(paths[1], (0, 0))
        assert [stack.model for stack in running_stacks(directory)] == ["first", "second"]


def test_only_the_user_can_read_it(directory):
    with RunFile(directory) as file:
        file.write(record())
        (path,) = directory.iterdir()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert "0123456789abcdef" not in repr(record())


def test_the_traces_of_a_killed_stack_are_removed(directory, tmp_path):
    run_dir = tmp_path / f"{RUN_DIR_PREFIX}abc"
    run_dir.mkdir()
    source = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path\n"
        "from test_cli_run_file import record; from tandem_cli.run_file import RunFile\n"
        "RunFile(Path(sys.argv[2])).write(record(run_dir=sys.argv[3])); os._exit(9)\n"
    )
    tests = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", source, tests, str(directory), str(run_dir)], check=False)
    assert len(list(directory.iterdir())) == 1
    assert running_stacks(directory) == []
    assert not run_dir.exists()
    assert not directory.exists()


def test_nothing_but_a_directory_of_ours_is_ever_removed(directory, tmp_path):
    precious = tmp_path / "precious"
    precious.mkdir()
    link = tmp_path / f"{RUN_DIR_PREFIX}link"
    link.symlink_to(precious)
    for run_dir in (precious, link):
        directory.mkdir(mode=0o700, exist_ok=True)
        file = RunFile(directory)
        file.write(record(run_dir=str(run_dir)))
        os.close(file._descriptor)  # what a kill does
        assert running_stacks(directory) == []
    assert precious.exists()


def test_a_file_that_makes_no_sense_is_not_a_stack(directory):
    directory.mkdir(mode=0o700)
    (directory / "x.json").write_text("{")
    (directory / "y.json").write_text('{"pid": 1}')
    assert running_stacks(directory) == []


def test_a_directory_that_others_can_enter_is_refused(directory):
    directory.mkdir(mode=0o755)
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        RunFile(directory).write(record())
    with pytest.raises(ConfigError, match="XDG_RUNTIME_DIR"):
        running_stacks(directory)


def test_the_place_follows_the_environment_if_there_is_such_a_place(tmp_path):
    name = f"tandem-{os.getuid()}"
    assert run_files_dir({"XDG_RUNTIME_DIR": str(tmp_path)}) == tmp_path / name
    for environ in ({}, {"XDG_RUNTIME_DIR": ""}, {"XDG_RUNTIME_DIR": "/nonexistent"}):
        assert run_files_dir(environ) == Path(tempfile.gettempdir()) / name
