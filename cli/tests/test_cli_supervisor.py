"""The supervisor with tiny programs: readiness, crashes, failing starts, and stops that leave nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from tandem_cli.redis_server import find_redis_server, redis_spec
from tandem_cli.supervisor import Crashed, Ready, RestartBackoff, StartFailed, Supervisor

READY = 'print(json.dumps({"ready": "x", "port": 4711}), flush=True)\n'
SERVICE = READY + "time.sleep(60)\n"
QUICK = RestartBackoff(first_s=0.05, max_s=0.1)


async def until(condition) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.02)


async def test_a_program_is_ready_when_it_says_so(program, tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        facts = await supervisor.start([program("one", "print('hello')\n" + SERVICE)])
        assert facts == {"one": {"ready": "x", "port": 4711}}
        state = supervisor.processes["one"]
        assert state.facts["port"] == 4711
        assert state.num_restarts == 0
        assert "hello" in state.log_path.read_text()


async def test_what_a_program_says_after_being_ready_goes_to_its_log(program, tmp_path):
    source = READY + "print('x' * 200000)\nprint('last words', file=sys.stderr)\ntime.sleep(60)\n"
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start([program("one", source)])
        log = supervisor.processes["one"].log_path
        # Two pipes: what stands between what is not decided.
        await until(lambda: "last words" in log.read_text() and log.read_text().count("x") == 200000)


async def test_programs_start_at_the_same_time(program, tmp_path):
    slow = "time.sleep(0.7)\n" + SERVICE
    started_s = time.monotonic()
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start([program(f"p{i}", slow) for i in range(4)])
        assert time.monotonic() - started_s < 2.5


async def test_a_crashed_program_is_started_again(program, tmp_path, is_alive):
    events = []
    async with Supervisor(tmp_path, on_event=events.append, backoff=QUICK) as supervisor:
        await supervisor.start([program("one", SERVICE)])
        first_pid = supervisor.processes["one"].pid
        os.kill(first_pid, signal.SIGKILL)
        await until(lambda: sum(isinstance(event, Ready) for event in events) == 2)
        state = supervisor.processes["one"]
        assert state.pid != first_pid
        assert state.num_restarts == 1
        assert [event.is_restart for event in events if isinstance(event, Ready)] == [False, True]
        (crash,) = (event for event in events if isinstance(event, Crashed))
        assert "signal 9" in crash.reason


async def test_a_program_that_fails_again_and_again_is_given_more_and_more_time(program, tmp_path):
    marker = tmp_path / "started"
    source = f"""
        if os.path.exists({str(marker)!r}): sys.exit(3)
        open({str(marker)!r}, "w").close()
        print(json.dumps({{"ready": "x"}}), flush=True)
    """
    crashes = []

    def on_event(event):
        if isinstance(event, Crashed):
            crashes.append(event)

    async with Supervisor(tmp_path, on_event=on_event, backoff=QUICK) as supervisor:
        await supervisor.start([program("one", source)])
        await until(lambda: len(crashes) >= 3)
    assert [crash.restart_in_s for crash in crashes[:3]] == [0.05, 0.1, 0.1]
    assert "exit code 3" in crashes[1].reason


async def test_a_program_that_cannot_start_fails_with_its_own_words(program, tmp_path):
    bad = program("bad", "sys.stderr.write('no such model\\n'); sys.exit(2)")
    async with Supervisor(tmp_path) as supervisor:
        with pytest.raises(StartFailed) as caught:
            await supervisor.start([program("good", SERVICE), bad])
    assert (caught.value.name, caught.value.returncode) == ("bad", 2)
    assert caught.value.log_tail == ("no such model",)
    assert "exit code 2" in str(caught.value)


async def test_a_program_that_does_not_exist_fails_with_its_name(program, tmp_path):
    from dataclasses import replace

    spec = replace(program("gone", ""), argv=("/nonexistent/program",))
    async with Supervisor(tmp_path) as supervisor:
        with pytest.raises(StartFailed) as caught:
            await supervisor.start([spec])
    assert "/nonexistent/program" in caught.value.log_tail[-1]


async def test_a_program_that_says_nothing_is_given_up(program, tmp_path, is_alive):
    async with Supervisor(tmp_path) as supervisor:
        with pytest.raises(StartFailed, match=r"not ready after 0\.5 s"):
            await supervisor.start([program("mute", "time.sleep(60)", start_timeout_s=0.5)])
    assert not any(is_alive(state.pid) for state in supervisor.processes.values())


async def test_stopping_goes_from_the_highest_tier_to_the_lowest(program, tmp_path):
    order = tmp_path / "order"
    source = f"""
        def stop(*_):
            time.sleep(0.2)
            with open({str(order)!r}, "a") as file: file.write(os.path.basename(sys.argv[0]) + " ")
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
    """
    service = textwrap.dedent(source) + SERVICE
    specs = [
        program(name, service, tier=tier, stop_wait_s=3.0) for tier, name in enumerate(("low", "mid", "top"))
    ]
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start(specs)
        await supervisor.stop(limit_s=9.0)
    assert order.read_text().split() == ["top.py", "mid.py", "low.py"]


async def test_what_does_not_stop_is_killed_in_time_with_everything_it_started(program, tmp_path, is_alive):
    source = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; "
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)'])\n"
        'print(json.dumps({"ready": "x", "child": child.pid}), flush=True)\n'
        "time.sleep(60)\n"
    )
    async with Supervisor(tmp_path) as supervisor:
        facts = await supervisor.start([program("stubborn", source)])
        pids = (supervisor.processes["stubborn"].pid, facts["stubborn"]["child"])
        assert all(map(is_alive, pids))
        started_s = time.monotonic()
        await supervisor.stop(limit_s=0.7)
        assert time.monotonic() - started_s < 3.0
    await until(lambda: not any(map(is_alive, pids)))


async def test_stopping_does_not_wait_for_a_restart(program, tmp_path):
    events = []
    async with Supervisor(
        tmp_path, on_event=events.append, backoff=RestartBackoff(first_s=60, max_s=60)
    ) as supervisor:
        await supervisor.start([program("one", SERVICE)])
        os.kill(supervisor.processes["one"].pid, signal.SIGKILL)
        await until(lambda: any(isinstance(event, Crashed) for event in events))
        started_s = time.monotonic()
        await supervisor.stop(limit_s=5.0)
        assert time.monotonic() - started_s < 2.5


async def test_a_kill_ends_a_stop_at_once(program, tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        source = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + SERVICE
        await supervisor.start([program("stubborn", source, stop_wait_s=30.0)])
        started_s = time.monotonic()
        stopping = asyncio.create_task(supervisor.stop(limit_s=30.0))
        await asyncio.sleep(0.1)
        supervisor.kill()
        await stopping
        assert time.monotonic() - started_s < 5.0


async def test_cancelling_a_start_leaves_nothing(program, tmp_path, is_alive):
    pid_file = tmp_path / "pid"
    source = f"open({str(pid_file)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"

    async def start() -> None:
        async with Supervisor(tmp_path) as supervisor:
            await supervisor.start([program("slow", source)])

    task = asyncio.create_task(start())
    await until(lambda: pid_file.exists() and pid_file.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not is_alive(int(pid_file.read_text()))


def test_nothing_survives_a_kill_of_the_supervisor(tmp_path, is_alive, eventually):
    script = tmp_path / "owner.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import asyncio, os, sys
            from pathlib import Path
            from tandem_cli.supervisor import ProcessSpec, Supervisor

            async def main():
                source = 'import time; print(\\'{{"ready": "x"}}\\', flush=True); time.sleep(60)'
                argv = (sys.executable, "-c", source)
                async with Supervisor(Path({str(tmp_path)!r})) as supervisor:
                    await supervisor.start([ProcessSpec(name="one", argv=argv, environ=dict(os.environ))])
                    print(supervisor.processes["one"].pid, flush=True)
                    await asyncio.sleep(60)

            asyncio.run(main())
            """
        )
    )
    owner = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    with owner:
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        owner.kill()
    eventually(lambda: not is_alive(pid))


async def test_secrets_are_in_no_command_line(program, tmp_path):
    spec = program("one", SERVICE, environ={"SECRET": "s3cret-s3cret"})
    assert "s3cret" not in repr(spec)
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start([spec])
        command_line = Path(f"/proc/{supervisor.processes['one'].pid}/cmdline").read_text()
        assert "one.py" in command_line
        assert "s3cret" not in command_line


async def test_two_programs_of_one_name_are_refused(program, tmp_path):
    async with Supervisor(tmp_path) as supervisor:
        await supervisor.start([program("one", SERVICE)])
        with pytest.raises(ValueError, match="one"):
            await supervisor.start([program("one", SERVICE)])


async def test_the_private_redis_answers_on_its_socket_and_on_no_port(tmp_path):
    redis_program = find_redis_server()
    assert redis_program is not None
    async with Supervisor(tmp_path) as supervisor:
        spec = redis_spec(redis_program, tmp_path, dict(os.environ), tier=0)
        await supervisor.start([spec])
        reader, writer = await asyncio.open_unix_connection(spec.ready_socket)
        writer.write(b"CONFIG GET port\r\nCONFIG GET save\r\n")
        answer = await asyncio.wait_for(reader.readuntil(b"save\r\n$0\r\n"), 5)
        assert b"port\r\n$1\r\n0\r\n" in answer
        writer.close()
        await writer.wait_closed()
        await supervisor.stop()
    assert not spec.ready_socket.exists()
