import socket
import ssl
from collections.abc import Iterator
from typing import Any

import pytest
from openai_server import OpenAIServer, Reply, answer, error, running_openai_server
from tandem_load.probe import Found, ProbeError, probe
from tandem_load.target import Target


@pytest.fixture
def server() -> Iterator[OpenAIServer]:
    with running_openai_server() as running:
        yield running


def ask(server: OpenAIServer, model: str | None = None, key: str = "") -> Found:
    return probe(Target.parse(server.url, key), model, "chat", ignore_eos=True, seed=1)


def test_words_are_weighed_by_what_the_server_counts(server: OpenAIServer) -> None:
    found = ask(server)
    assert found.dialect.model == "fake"
    assert found.dialect.tokens_per_word == pytest.approx(2.0)
    assert found.dialect.overhead_tokens == pytest.approx(7.0)
    assert found.dialect.num_words(107) == 50
    assert found.notes == []


def test_the_key_goes_with_every_request(server: OpenAIServer) -> None:
    ask(server, key="sesame")
    assert set(server.keys) == {"Bearer sesame"}


@pytest.mark.parametrize(
    ("refused", "left"),
    [
        (("ignore_eos",), {"ignore_eos": False}),
        (("ignore_eos", "temperature"), {"ignore_eos": False, "greedy": False}),
        (("max_tokens",), {"length_field": "max_completion_tokens"}),
    ],
)
def test_what_a_server_does_not_know_is_left_out_and_said(
    server: OpenAIServer, refused: tuple[str, ...], left: dict[str, Any]
) -> None:
    def strict(body: dict[str, Any]) -> Reply:
        for name in refused:
            if name in body:
                advice = "use 'max_completion_tokens'" if name == "max_tokens" else ""
                return error(400, f"unknown field {name}; {advice}")
        return answer(body)

    server.respond = strict
    found = ask(server)
    for name, value in left.items():
        assert getattr(found.dialect, name) == value
    assert len(found.notes) == len(refused)


def test_a_server_that_gives_no_reason_is_asked_for_less_and_less(server: OpenAIServer) -> None:
    server.respond = lambda body: error(400, "no") if "stream_options" in body else answer(body)
    found = ask(server)
    assert not found.dialect.include_usage
    assert any("lengths of prompts are in words" in note for note in found.notes)


@pytest.mark.parametrize(
    ("reply", "model", "told"),
    [
        (error(401, "no key"), None, "wants an API key"),
        (error(404, "unknown model"), "nosuch", "no model 'nosuch'; there are: fake"),
        (error(503, "no worker"), "fake", "HTTP 503: no worker"),
        (error(429, "busy"), "fake", "too busy"),
        (error(400, "the context is 16 tokens"), "fake", "the context is 16 tokens"),
        (Reply([b"data: {\n\n"]), "fake", "malformed answer"),
    ],
)
def test_a_server_that_cannot_be_loaded_says_why(
    server: OpenAIServer, reply: Reply, model: str | None, told: str
) -> None:
    server.respond = lambda _: reply
    if model is None:
        server.models = reply
    with pytest.raises(ProbeError, match=told):
        ask(server, model)


def test_a_server_without_models_and_nobody_at_all_are_told(server: OpenAIServer) -> None:
    server.models = []
    with pytest.raises(ProbeError, match="lists no model"):
        ask(server)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ProbeError, match=r"nothing answers at .* \(connection refused\).*tandem up"):
        probe(Target.parse(f"http://127.0.0.1:{port}"), None, "chat", ignore_eos=True, seed=1)


def test_tls_towards_a_plain_server_is_told(server: OpenAIServer) -> None:
    with pytest.raises(ProbeError, match=f"is it http://127.0.0.1:{server.port}"):
        probe(Target.parse(f"https://127.0.0.1:{server.port}"), None, "chat", ignore_eos=True, seed=1)
    assert issubclass(ssl.SSLError, OSError)  # what the above relies on
