"""`tandem chat` in a terminal and without one, against a scripted frontend."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from tandem.v1 import generation_pb2, inference_pb2, inference_pb2_grpc


class Frontend(inference_pb2_grpc.InferenceServiceServicer):
    """Answers "slow ..." until the client leaves, and everything else with the number of messages."""

    def __init__(self) -> None:
        self.client_left = threading.Event()
        self.conversations: list[list[tuple[str, str]]] = []

    def ListModels(self, request, context):  # noqa: N802 - gRPC names it so
        return inference_pb2.ListModelsResponse(
            models=[inference_pb2.Model(id="tiny", max_context_tokens=4096)]
        )

    def Tokenize(self, request, context):  # noqa: N802
        return inference_pb2.TokenizeResponse(token_ids=[1] * len(request.conversation.messages))

    def Chat(self, request, context):  # noqa: N802
        self.conversations.append([(message.role, message.content) for message in request.messages])
        if request.messages[-1].content == "fail":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such thing")
        if request.messages[-1].content.startswith("slow"):
            left = threading.Event()
            context.add_callback(left.set)
            yield self._delta("begun\x1b[2J")
            if left.wait(30):
                self.client_left.set()
            return
        yield self._delta(f"answer {len(request.messages)}")
        usage = inference_pb2.Usage(prompt_tokens=1, completion_tokens=1)
        completed = inference_pb2.Completed(reason=generation_pb2.FINISH_REASON_STOP, usage=usage)
        yield inference_pb2.ChatResponse(request_id="req-1", completed=completed)

    def _delta(self, text: str) -> inference_pb2.ChatResponse:
        return inference_pb2.ChatResponse(
            request_id="req-1", delta=inference_pb2.TextDelta(text=text, token_ids=[7])
        )


@pytest.fixture
def frontend() -> Iterator[tuple[Frontend, str]]:
    service = Frontend()
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    inference_pb2_grpc.add_InferenceServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield service, f"127.0.0.1:{port}"
    server.stop(0.2).wait(5)


# Opening a terminal makes it the controlling one of a session without any: Ctrl-C then is a signal.
IN_TERMINAL = """
import os, sys
os.setsid()
terminal = os.open(sys.argv[1], os.O_RDWR)
for descriptor in (0, 1, 2):
    os.dup2(terminal, descriptor)
os.execv(sys.executable, [sys.executable, "-m", "tandem_cli", *sys.argv[2:]])
"""


class Terminal:
    """A `tandem chat` with a terminal of its own."""

    def __init__(self, address: str, runtime_dir: Path) -> None:
        self.descriptor, self.other_end = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", IN_TERMINAL, os.ttyname(self.other_end), "chat", "--address", address],
            env={**os.environ, "XDG_RUNTIME_DIR": str(runtime_dir)},
        )
        self.output = ""

    def expect(self, text: str) -> str:
        """Read until the text has been printed; returns what came before it."""
        deadline_s = time.monotonic() + 20
        while text not in self.output:
            readable, _, _ = select.select([self.descriptor], [], [], deadline_s - time.monotonic())
            assert readable, self.output
            self.output += os.read(self.descriptor, 4096).decode("utf-8", "replace")
        before, _, self.output = self.output.partition(text)
        return before

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def exit_code(self) -> int:
        return self.process.wait(20)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)
        os.close(self.other_end)


@pytest.fixture
def terminal(frontend: tuple[Frontend, str], tmp_path: Path) -> Iterator[Terminal]:
    terminal = Terminal(frontend[1], tmp_path)
    yield terminal
    terminal.close()


def test_a_conversation_in_a_terminal(frontend, terminal):
    service, _ = frontend
    terminal.expect("> ")
    terminal.type("first\n")
    terminal.expect("answer 1")
    terminal.expect("1 tokens")
    terminal.expect("> ")

    # Ctrl-C stops an answer, on the server too, and the conversation goes on.
    terminal.type("slow\n")
    terminal.expect("begun[2J")
    terminal.type("\x03")
    terminal.expect("stopped")
    assert service.client_left.wait(5)
    terminal.expect("> ")

    # An error ends neither the conversation nor its memory.
    terminal.type("fail\n")
    terminal.expect("no such thing")
    terminal.expect("> ")
    terminal.type("last\n")
    terminal.expect("answer 5")
    terminal.expect("> ")
    assert service.conversations[-1] == [
        ("user", "first"), ("assistant", "answer 1"),
        ("user", "slow"), ("assistant", "begun\x1b[2J"),
        ("user", "last"),
    ]  # fmt: skip

    # Ctrl-D leaves.
    terminal.type("\x04")
    assert terminal.exit_code() == 0


def test_an_answer_alone_goes_to_standard_output(frontend, tmp_path):
    _, address = frontend
    result = subprocess.run(
        [sys.executable, "-m", "tandem_cli", "chat", "--address", address, "--system", "be brief", "hello"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}, check=True,
    )  # fmt: skip
    assert result.stdout == "answer 2\n"
    assert "1 tokens" in result.stderr


def test_an_error_ends_with_one_line_and_a_code(frontend, tmp_path):
    _, address = frontend
    environ = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "tandem_cli", "chat", "--address", address]
    for arguments, named in ((["fail"], "no such thing"), (["--model", "big", "hi"], "there are: tiny")):
        result = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=60, env=environ, check=False
        )
        assert result.returncode == 2
        assert named in result.stderr
        assert len(result.stderr.splitlines()) == 1
