"""What clients are promised: the OpenAI API, caching, limits, cancellation, observability."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from tandem_client import Client, InvalidRequest

LONG_TEXT = " ".join(f"Item {number} is on the list." for number in range(120))
CONTEXT = 4096


@pytest.fixture
def sdk(stack: Any) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{stack.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_the_openai_package_chats_and_streams(sdk: openai.OpenAI, stack: Any) -> None:
    assert stack.model in [model.id for model in sdk.models.list()]
    messages: Any = [{"role": "user", "content": "What is the capital of France?"}]
    whole = sdk.chat.completions.create(model=stack.model, messages=messages, temperature=0, max_tokens=24)
    assert whole.usage is not None
    pieces = list(
        sdk.chat.completions.create(
            model=stack.model,
            messages=messages,
            temperature=0,
            max_tokens=24,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    text = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert text == whole.choices[0].message.content != ""
    assert pieces[-1].usage is not None
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens
    finish = [piece.choices[0].finish_reason for piece in pieces if piece.choices][-1]
    assert finish == whole.choices[0].finish_reason


def test_the_openai_package_completes_with_logprobs(sdk: openai.OpenAI, stack: Any) -> None:
    answer = sdk.completions.create(
        model=stack.model, prompt="Once upon a time", temperature=0, max_tokens=6, logprobs=2
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs is not None
    assert "".join(logprobs.tokens) == answer.choices[0].text
    assert all(value is not None and value <= 0 for value in logprobs.token_logprobs)


def test_http_and_grpc_give_the_same_answer(stack: Any) -> None:
    over_http = stack.chat("Tell me a story about a fox.", temperature=0.8, seed=5, max_tokens=40)
    with Client(stack.grpc_address) as client:
        over_grpc = client.chat(
            "Tell me a story about a fox.", model=stack.model, temperature=0.8, seed=5, max_tokens=40
        )
    assert over_grpc.text == over_http["choices"][0]["message"]["content"]


def test_a_seed_repeats_an_answer_and_another_changes_it(stack: Any) -> None:
    texts = [
        stack.complete("Once upon a time", temperature=1.2, seed=seed, max_tokens=30)["choices"][0]["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_long_prefix_is_cached_and_its_next_request_goes_where_it_is(stack: Any) -> None:
    first = stack.complete(LONG_TEXT + " First.", temperature=0, max_tokens=4)
    num_tokens = first["usage"]["prompt_tokens"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] < 32
    deadline = time.monotonic() + 5
    while True:
        # Events reach the router within a heartbeat or two.
        time.sleep(0.3)
        second = stack.complete(LONG_TEXT + " Second.", temperature=0, max_tokens=4)
        cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
        if cached >= 0.9 * num_tokens:
            break
        assert time.monotonic() < deadline, f"only {cached} of {num_tokens} tokens were cached"


@pytest.mark.parametrize("num_tokens", [1, CONTEXT])
def test_prompts_of_one_token_and_of_the_full_context_work(stack: Any, num_tokens: int) -> None:
    answer = stack.complete(
        [100 + i % 1000 for i in range(num_tokens)], max_tokens=1, temperature=0, ignore_eos=True
    )
    assert answer["usage"]["prompt_tokens"] == num_tokens
    assert answer["usage"]["completion_tokens"] == 1


def test_one_token_more_than_the_context_is_refused_with_both_numbers(stack: Any) -> None:
    with stack.client() as client:
        body = {"model": stack.model, "prompt": [100] * (CONTEXT + 1), "max_tokens": 1}
        response = client.post("/v1/completions", json=body)
    assert response.status_code == 400
    assert str(CONTEXT) in response.json()["error"]["message"]
    assert str(CONTEXT + 1) in response.json()["error"]["message"]
    with Client(stack.grpc_address) as client, pytest.raises(InvalidRequest, match=str(CONTEXT + 1)):
        client.generate([100] * (CONTEXT + 1), model=stack.model, max_tokens=1)


BAD = [
    (b"{", 400),
    (b"\xff\xfe", 400),
    (b"[]", 400),
    (b'{"model": "nobody", "prompt": "x"}', 404),
    (b'{"model": 5, "prompt": "x"}', 400),
    (b'{"model": "MODEL", "prompt": 5}', 400),
    (b'{"model": "MODEL", "prompt": ""}', 400),
    (b'{"model": "MODEL", "prompt": "x", "temperature": -1}', 400),
    (b'{"model": "MODEL", "prompt": "x", "temperature": NaN}', 400),
    (b'{"model": "MODEL", "prompt": "x", "top_p": 0}', 400),
    (b'{"model": "MODEL", "prompt": "x", "max_tokens": 0}', 400),
    (b'{"model": "MODEL", "prompt": "x", "max_tokens": 1' + b"0" * 400 + b"}", 400),
    (b'{"model": "MODEL", "prompt": "x", "logprobs": 1000000}', 400),
    (b'{"model": "MODEL", "prompt": "x", "logit_bias": {"99999999": 1}}', 400),
    (b'{"model": "MODEL", "prompt": "x", "no_such_field": 1}', 400),
    (b'{"model": "MODEL", "prompt": [99999999]}', 400),
    (b'{"model": "MODEL", "prompt": [-1]}', 400),
    (b"[" * 100_000, 400),
    (b'{"model": "MODEL", "prompt": "x", "stop": ["a", "b", 3]}', 400),
    (b'{"model": "MODEL", "prompt": "\\ud800"}', 400),
]


@pytest.mark.parametrize(("body", "status"), BAD, ids=range(len(BAD)))
def test_bad_input_gets_a_message_and_disturbs_nothing(stack: Any, body: bytes, status: int) -> None:
    with stack.client() as client:
        response = client.post(
            "/v1/completions",
            content=body.replace(b"MODEL", stack.model.encode()),
            headers={"Content-Type": "application/json"},
        )
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["message"]
    assert error["type"]
    assert stack.complete("Hi", max_tokens=2, ignore_eos=True)["usage"]["completion_tokens"] == 2


def test_a_client_that_leaves_stops_its_request_on_every_worker(stack: Any) -> None:
    body = {
        "model": stack.model,
        "prompt": LONG_TEXT + " And so",
        "max_tokens": 2500,
        "ignore_eos": True,
        "stream": True,
    }
    with stack.client() as client, client.stream("POST", "/v1/completions", json=body) as response:
        lines = response.iter_lines()
        for _ in range(6):
            next(lines)
    stack.assert_quiet(timeout_s=2)


def test_a_client_that_leaves_before_the_first_token_leaves_nothing_behind(stack: Any) -> None:
    body = {
        "model": stack.model,
        "prompt": [7 + i % 500 for i in range(4000)],
        "max_tokens": 50,
        "ignore_eos": True,
    }
    for timeout_s in (0.02, 0.1, 0.3):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{stack.url}/v1/completions", json=body, timeout=httpx.Timeout(10, read=timeout_s))
    stack.assert_quiet()


def test_stop_strings_end_the_text_before_them(stack: Any) -> None:
    free = stack.complete("Once upon a time", temperature=0, max_tokens=30)["choices"][0]["text"]
    stop = free[12:17]
    answer = stack.complete("Once upon a time", temperature=0, max_tokens=30, stop=[stop])["choices"][0]
    assert answer["text"] == free[: free.index(stop)]
    assert answer["finish_reason"] == "stop"


def test_the_request_id_is_in_the_log_of_every_service_it_passed(stack: Any) -> None:
    prompt = [11 + i % 900 for i in range(1500)]
    with stack.client() as client:
        body = {"model": stack.model, "prompt": prompt, "max_tokens": 2}
        response = client.post("/v1/completions", json=body)
    request_id = response.headers["x-request-id"]
    time.sleep(0.3)
    for services in (("frontend",), ("router",), ("decode-1", "decode-2")):
        lines = "".join(stack.log(name) for name in services)
        found = [json.loads(line) for line in lines.splitlines() if f'"{request_id}"' in line]
        assert found, f"{services} logged nothing about {request_id}"
        assert all(entry["request_id"] == request_id for entry in found)
    decision = next(line for line in stack.log("router").splitlines() if request_id in line)
    if '"prefill-' in decision:
        assert request_id in stack.log("prefill-1") + stack.log("prefill-2")


def test_health_models_docs_and_metrics_answer(stack: Any) -> None:
    with stack.client() as client:
        assert client.get("/health").status_code == 200
        assert client.get("/live").status_code == 200
        assert [model["id"] for model in client.get("/v1/models").json()["data"]] == [stack.model]
        assert "/v1/chat/completions" in client.get("/openapi.json").json()["paths"]
        assert "text/html" in client.get("/docs").headers["content-type"]
        assert "tandem_frontend_" in client.get("/metrics").text


def test_every_service_has_metrics(stack: Any) -> None:
    prefixes = {"router": "router", "planner": "planner", "prefill-1": "worker", "decode-1": "worker"}
    for name, prefix in prefixes.items():
        port = stack.facts["processes"][name]["metrics_port"]
        text = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert re.search(rf"^tandem_{prefix}_", text, re.MULTILINE), name
