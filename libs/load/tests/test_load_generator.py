"""The generator in a process of its own, against a real small server."""

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai_server import OpenAIServer, Reply, answer, error, running_openai_server, text_event
from tandem_load.conversation import PromptShape
from tandem_load.dialect import Dialect
from tandem_load.lengths import Lengths
from tandem_load.load_process import LoadProcess, Progress
from tandem_load.load_task import Arrivals, Clients, LatencyTargets, LoadTask, Traffic
from tandem_load.measured import Measured
from tandem_load.target import Target

DIALECT = Dialect(model="fake", tokens_per_word=2.0, overhead_tokens=7.0)


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with running_openai_server() as running:
        yield running


def task(url: str, traffic: Traffic, **changes: Any) -> LoadTask:
    shape = {"input_tokens": Lengths.parse("47"), "output_tokens": Lengths.parse("5")}
    shape |= {name: changes.pop(name) for name in ("num_turns", "think_s") if name in changes}
    values = {
        "target": Target.parse(url),
        "dialect": DIALECT,
        "traffic": traffic,
        "shape": PromptShape(**shape),
        "targets": LatencyTargets(ttft_s=30.0),
        "warmup_s": 0.0,
        "duration_s": None,
        "report_interval_s": 0.02,
    }
    return LoadTask(**(values | changes))  # type: ignore[arg-type]


def run(made: LoadTask) -> Measured:
    process = LoadProcess(made)
    try:
        return process.wait(lambda _: None)
    finally:
        process.close()


def test_a_closed_loop_asks_so_many_requests_and_counts_all_there_is_to_count(server: OpenAIServer) -> None:
    measured = run(task(server.url, Clients(count=3), max_requests=20))
    assert (measured.num_sent, measured.num_done, measured.num_good) == (20, 20, 20)
    assert not measured.failures
    assert (measured.answer_tokens.total, measured.answer_tokens.least) == (100, 5)
    assert (measured.prompt_tokens.least, measured.prompt_tokens.most) == (47, 47)
    assert measured.itl.count == 80
    assert measured.ttft.count == measured.e2e.count == measured.tpot.count == 20
    assert measured.num_connections == 3  # kept alive
    assert measured.window_s > 0
    assert measured.cpu_s > 0
    assert measured.num_cpu_events == 100
    assert len({body["messages"][0]["content"] for body in server.bodies}) == 20


def test_an_open_loop_goes_on_while_answers_are_missing(server: OpenAIServer) -> None:
    hold = threading.Event()

    def slow(body: dict[str, Any]) -> Reply:
        reply = answer(body)
        reply.holds = hold
        if len(server.bodies) == 12:
            hold.set()
        return reply

    server.respond = slow
    measured = run(task(server.url, Arrivals(rate=100.0), max_requests=12))
    # Had the generator waited for an answer, the twelfth request would never have come.
    assert (measured.num_sent, measured.num_done) == (12, 12)
    assert measured.num_connections == 12


def test_each_turn_of_a_conversation_brings_the_model_its_own_words(server: OpenAIServer) -> None:
    measured = run(task(server.url, Clients(count=1), max_requests=6, num_turns=3))
    assert measured.num_done == 6
    lengths = [len(body["messages"]) for body in server.bodies]
    assert lengths == [1, 3, 5, 1, 3, 5]
    assert server.bodies[1]["messages"][1] == {"role": "assistant", "content": " t0 t1 t2 t3 t4"}
    assert server.bodies[2]["messages"][:3] == server.bodies[1]["messages"]


def test_every_way_to_fail_is_counted_and_the_rest_goes_on(server: OpenAIServer) -> None:
    replies = [
        lambda _: error(429, "slow down", Retry_After="0"),
        lambda _: error(500, "worker died"),
        lambda _: Reply([text_event("a")], breaks_off=True),
        lambda _: Reply([b"data: {nonsense\n\n"]),
        lambda _: Reply([b'data: {"error": {"message": "worker died"}}\n\n']),
        lambda _: Reply([b"{}"], headers={"Content-Type": "application/json"}),
        lambda _: Reply([b"data: [DONE]\n\n"]),
    ]
    server.respond = lambda body: (replies.pop(0) if replies else answer)(body)
    measured = run(task(server.url, Arrivals(rate=200.0, evenly=True), max_requests=10))
    assert {kind: count.count for kind, count in measured.failures.items()} == {
        "HTTP 429": 1,
        "HTTP 500": 1,
        "stream broken off": 1,
        "malformed answer": 2,
        "error in stream": 1,
        "empty answer": 1,
    }
    assert (measured.num_sent, measured.num_done, measured.num_good) == (10, 3, 3)
    assert measured.failures["HTTP 429"].most_retry_after_s == 0.0


def test_a_client_that_was_refused_waits_as_long_as_it_was_told(server: OpenAIServer) -> None:
    times: list[float] = []

    def refuse_once(body: dict[str, Any]) -> Reply:
        times.append(time.monotonic())
        return answer(body) if len(times) > 1 else error(429, "busy", Retry_After="1")

    server.respond = refuse_once
    measured = run(task(server.url, Clients(count=1), max_requests=2))
    assert (measured.num_sent, measured.num_done) == (2, 1)
    assert times[1] - times[0] >= 1.0


def test_a_request_that_never_ends_is_given_up(server: OpenAIServer) -> None:
    never = threading.Event()

    def hang(body: dict[str, Any]) -> Reply:
        reply = answer(body)
        reply.holds = never
        return reply

    server.respond = hang
    try:
        measured = run(task(server.url, Clients(count=1), max_requests=1, timeout_s=0.3))
    finally:
        never.set()
    assert {kind: count.count for kind, count in measured.failures.items()} == {"timed out": 1}


def test_an_interrupt_keeps_what_was_measured(server: OpenAIServer) -> None:
    never = threading.Event()

    def hang_later(body: dict[str, Any]) -> Reply:
        reply = answer(body)
        if len(server.bodies) > 4:
            reply.holds = never
        return reply

    server.respond = hang_later
    process = LoadProcess(task(server.url, Clients(count=2), duration_s=60.0))

    def interrupt(standing: Progress) -> None:
        if standing.num_done == 4 and standing.num_in_flight == 2:
            process.interrupt()

    try:
        measured = process.wait(interrupt)
    finally:
        process.close()
        never.set()
    assert measured.was_interrupted
    assert (measured.num_sent, measured.num_done, measured.num_unfinished) == (6, 4, 2)
    assert 0 < measured.window_s < 60


def test_a_server_that_went_away_is_a_failure_of_each_request() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    measured = run(task(f"http://127.0.0.1:{port}", Arrivals(rate=100.0), max_requests=3))
    assert {kind: count.count for kind, count in measured.failures.items()} == {"cannot connect": 3}
    assert measured.failures["cannot connect"].message == "connection refused"


def test_a_connection_that_the_server_closed_while_idle_is_replaced() -> None:
    """Answers one request a connection and closes it without a word, as a server does whose keep-alive ran out."""
    reply = (
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: %d\r\n\r\n" % len(EVENTS)
        + EVENTS
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            num_answered = 0
            while num_answered < 4:
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(1 << 16):  # nothing comes from who only looks whether we are there
                        connection.sendall(reply)
                        num_answered += 1

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        measured = run(
            task(f"http://127.0.0.1:{listener.getsockname()[1]}", Clients(count=1), max_requests=4)
        )
        thread.join(10)
    assert (measured.num_done, measured.failures) == (4, {})
    assert measured.num_connections == 4


EVENTS = text_event("a") + b"data: [DONE]\n\n"


def test_the_address_of_a_name_that_answers_is_used(server: OpenAIServer) -> None:
    """The server listens on 127.0.0.1 only; `localhost` may mean ::1 first."""
    measured = run(task(f"http://localhost:{server.port}", Clients(count=1), max_requests=2))
    assert (measured.num_done, measured.failures) == (2, {})


def test_a_connection_on_which_a_request_was_refused_half_sent_is_not_used_again() -> None:
    refusal = b"HTTP/1.1 413 X\r\nContent-Length: 0\r\n\r\n"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)

        def serve() -> None:
            kept = []
            while len(kept) < 2:
                connection, _ = listener.accept()
                if connection.recv(100):
                    connection.sendall(refusal)
                    kept.append(connection)
                else:
                    connection.close()
            for connection in kept:
                connection.close()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        shape = PromptShape(input_tokens=Lengths.parse("20000000"), output_tokens=Lengths.parse("5"))
        measured = run(task(url, Clients(count=1), max_requests=2, shape=shape))
        thread.join(10)
    assert {kind: count.count for kind, count in measured.failures.items()} == {"HTTP 413": 2}
    assert measured.num_connections == 2


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of 127.0.0.1, signed by itself, with its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    path = tmp_path / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
    ]
    names = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2"]
    subprocess.run(
        [*command, *names, "-keyout", str(tmp_path / "key"), "-out", str(tmp_path / "cert")],
        check=True,
        capture_output=True,
    )
    path.write_text((tmp_path / "key").read_text() + (tmp_path / "cert").read_text())
    return path


def test_a_server_with_tls_is_loaded_likewise_and_an_unknown_certificate_is_refused(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with running_openai_server(context) as server:
        unknown = run(task(server.url, Clients(count=1), max_requests=1))
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        measured = run(task(server.url, Clients(count=3), max_requests=12, num_turns=2))
    assert "certificate" in unknown.failures["cannot connect"].message
    assert (measured.num_done, measured.failures, measured.num_connections) == (12, {}, 3)
    assert measured.answer_tokens.total == 60


def test_a_generator_that_lost_its_parent_ends(server: OpenAIServer) -> None:
    process = LoadProcess(task(server.url, Clients(count=1), duration_s=60.0))
    assert process._process.stdout is not None
    process._process.stdout.readline()
    process._process.stdout.close()
    assert process._process.wait(20) != 0
