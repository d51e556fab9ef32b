"""Bad input: one table for both doors, and what only HTTP can get wrong. Always 4xx, never anything disturbed."""

from __future__ import annotations

import json
from typing import Any

import pytest
from google.protobuf import json_format
from tandem.v1 import inference_pb2, inference_pb2_grpc
from tandem_common.errors import InvalidRequest
from tandem_frontend.openai_requests import parse_chat, parse_completion

LONG = "word " * 600  # more than the context of 512 tokens

# What is wrong, the fields (named alike at both doors), and the words that the message must hold.
SHARED = [
    ("temperature too high", {"temperature": 2.5}, "temperature must be between 0 and 2"),
    ("temperature negative", {"temperature": -1}, "temperature must be"),
    ("top_p zero", {"top_p": 0}, "top_p must be above 0"),
    ("top_p too high", {"top_p": 1.1}, "top_p must be"),
    ("top_k too high", {"top_k": 2**31}, "top_k must be"),
    ("min_p too high", {"min_p": 1.5}, "min_p must be"),
    ("repetition_penalty zero", {"repetition_penalty": 0}, "repetition_penalty must be above 0"),
    ("presence_penalty too low", {"presence_penalty": -2.1}, "presence_penalty must be"),
    ("frequency_penalty too high", {"frequency_penalty": 3}, "frequency_penalty must be"),
    ("logit_bias too high", {"logit_bias": {"5": 101}}, "logit_bias must be"),
    ("logit_bias outside", {"logit_bias": {"4096": 1}}, "token id 4096; this model's are 0 to 4095"),
    ("logit_bias too many", {"logit_bias": {str(i): 1 for i in range(1025)}}, "at most 1024"),
    ("too many logprobs", {"logprobs": 21}, "20"),
    ("max_tokens zero", {"max_tokens": 0}, "max_tokens must be between 1"),
    ("max_tokens too high", {"max_tokens": 4000}, "512"),
    ("min above max", {"min_tokens": 9, "max_tokens": 3}, "min_tokens (9) is above max_tokens (3)"),
    ("stop empty", {"stop": [""]}, "1 to 256"),
    ("stop too long", {"stop": ["x" * 257]}, "257 characters"),
    ("too many stops", {"stop": ["x"] * 17}, "at most 16"),
    ("stop token outside", {"stop_token_ids": [4096]}, "token id 4096"),
    ("too many stop tokens", {"stop_token_ids": list(range(100))}, "at most 64"),
    ("deadline too far", {"ttft_deadline_ms": 2**31}, "ttft_deadline_ms must be"),
    ("prompt too long", {"prompt": LONG}, "context holds 512"),
    ("prompt empty", {"prompt": ""}, "prompt is empty"),
    ("token outside", {"prompt": [1, 4096]}, "token id 4096"),
    ("no tokens", {"prompt": []}, "prompt is empty"),
]
SAMPLING = {
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "logit_bias", "seed", "logprobs",
}  # fmt: skip


def as_grpc(fields: dict[str, Any]) -> inference_pb2.GenerateRequest:
    """The same request in the typed contract."""
    prompt = fields.get("prompt", "Once")
    options = {name: value for name, value in fields.items() if name not in {"prompt"} | SAMPLING}
    options["sampling"] = {name: value for name, value in fields.items() if name in SAMPLING}
    message: dict[str, Any] = {"model": "tandem-tiny", "options": options}
    if isinstance(prompt, str):
        message["text"] = prompt
    else:
        message["token_ids"] = {"ids": prompt}
    return json_format.ParseDict(message, inference_pb2.GenerateRequest())


async def test_both_doors_refuse_the_same_with_the_same_words(system):
    worker = await system.add_worker("w1")
    await system.start()
    num_submits = len(worker.submits)
    stub = inference_pb2_grpc.InferenceServiceStub(system.channel)
    for name, fields, words in SHARED:
        body = {"model": "tandem-tiny", "prompt": "Once"} | fields
        async with system.http.post("/v1/completions", json=body) as response:
            error = (await response.json())["error"]
        assert (response.status, error["type"]) == (400, "invalid_request_error"), name
        assert words in error["message"], name
        call = stub.Generate(as_grpc(fields), timeout=5)
        assert (await call.code()).name == "INVALID_ARGUMENT", name
        assert words in await call.details(), name
        # HTTP's default for max_tokens is a number, so only messages about that may differ.
        if "logprobs" not in fields:
            assert await call.details() == error["message"], name
    assert len(worker.submits) == num_submits
    async with system.http.post(
        "/v1/completions", json={"model": "tandem-tiny", "prompt": "Once"}
    ) as response:
        assert response.status == 200


async def test_unknown_models_and_roles_are_refused_at_both_doors(system):
    await system.add_worker("w1")
    await system.start()
    stub = inference_pb2_grpc.InferenceServiceStub(system.channel)
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "nobody", "messages": messages}
    async with system.http.post("/v1/chat/completions", json=body) as response:
        error = (await response.json())["error"]
        assert (response.status, error["param"]) == (404, "model")
        assert "'tandem-tiny'" in error["message"]
    call = stub.Generate(inference_pb2.GenerateRequest(model="nobody", text="Hi"), timeout=5)
    assert (await call.code()).name == "NOT_FOUND"
    body = {"model": "tandem-tiny", "messages": [{"role": "wizard", "content": "Hi"}]}
    async with system.http.post("/v1/chat/completions", json=body) as response:
        message = (await response.json())["error"]["message"]
    request = inference_pb2.ChatRequest(
        model="tandem-tiny", messages=[inference_pb2.ChatMessage(role="wizard", content="Hi")]
    )
    call = stub.Chat(request, timeout=5)
    assert (await call.code()).name == "INVALID_ARGUMENT"
    assert await call.details() == message
    for empty in (inference_pb2.GenerateRequest(model="tandem-tiny"), as_grpc({"request_class": 7})):
        assert (await stub.Generate(empty, timeout=5).code()).name == "INVALID_ARGUMENT"


@pytest.mark.parametrize("num_tokens", [1, 512])
async def test_the_shortest_and_the_longest_prompt_work(system, num_tokens):
    await system.add_worker("w1")
    await system.start()
    body = {"model": "tandem-tiny", "prompt": [5] * num_tokens}
    async with system.http.post("/v1/completions", json=body) as response:
        usage = (await response.json())["usage"]
    assert usage["prompt_tokens"] == num_tokens
    assert usage["completion_tokens"] == (1 if num_tokens == 512 else 16)


def chat(**fields: Any) -> bytes:
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]} | fields
    return json.dumps(body).encode()


def message(**fields: Any) -> bytes:
    return chat(messages=[{"role": "user", "content": "Hi"} | fields])


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b'\xef\xbb\xbf{"model":"m","messages":[]}', None),
        (b'{"model":"m","messages":[],"user":"\xff"}', None),
        (b'{"model":"m","tools":"\xff","messages":[]}', None),
        (b'{"model":"m","messages":[{"role":"user","content":"\\ud800"}]}', None),
        (b'{"model":"m","temperature":NaN,"messages":[]}', None),
        (b'{"model":"m","temperature":Infinity,"messages":[]}', None),
        (b'{"model":"m","temperature":1e999,"messages":[]}', "temperature"),
        (b'{"model":"m","seed":' + b"9" * 10_000 + b',"messages":[]}', "seed"),
        (b'{"model":"m","tools":' + b"[" * 100_000 + b"]" * 100_000 + b',"messages":[]}', None),
        (b'{"model":"m","metadata":{"a":' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001, "metadata[...]"),
        (b'{"messages":[]}', "model"),
        (chat(messages=[]), "messages"),
        (chat(messages="Hi"), "messages"),
        (chat(model=5), "model"),
        (chat(max_tokens="7"), "max_tokens"),
        (chat(max_tokens=7.5), "max_tokens"),
        (chat(max_tokens=-1), "max_tokens"),
        (chat(max_tokens=2**63), "max_tokens"),
        (chat(max_tokens=10**18), "max_tokens"),
        (chat(min_tokens=-1), "min_tokens"),
        (chat(seed=10**300), "seed"),
        (chat(top_k=10**400), "top_k"),
        (chat(ttft_deadline_ms=10**400), "ttft_deadline_ms"),
        (chat(max_tokens=5, max_completion_tokens=6), "max_completion_tokens"),
        (chat(temperature=True), "temperature"),
        (chat(seed=-1), "seed"),
        (chat(seed=2**64), "seed"),
        (chat(n=0), "n"),
        (chat(n=10**9), "n"),
        (chat(stop=5), "stop"),
        (chat(stop=["a", 5]), "stop[1]"),
        (chat(top_logprobs=3), "top_logprobs"),
        (chat(logprobs=True, top_logprobs=10**6), "logprobs"),
        (chat(logit_bias={"x": 1}), "logit_bias"),
        (chat(stream_options={"include_usage": True}), "stream_options"),
        (chat(stream=True, stream_options={"surprise": 1}), "stream_options"),
        (chat(tools=[{"type": "function"}]), "tools"),
        (chat(tool_choice="required"), "tool_choice"),
        (chat(functions=[{}]), "functions"),
        (chat(audio={"voice": "x"}), "audio"),
        (chat(response_format={"type": "json_object"}), "response_format"),
        (chat(modalities=["audio"]), "modalities"),
        (chat(request_class="royal"), "request_class"),
        (chat(chat_template="{{ x }}"), "chat_template"),
        (chat(chat_template_kwargs={}), "chat_template_kwargs"),
        (chat(kv_transfer_params={"remote_host": "10.0.0.1"}), "kv_transfer_params"),
        (chat(cache_salt="x"), "cache_salt"),
        (chat(mm_processor_kwargs={}), "mm_processor_kwargs"),
        (message(role="tool"), "messages"),
        (message(content=None), "messages[0].content"),
        (message(content=[{"type": "image_url", "image_url": {"url": "http://x/"}}]), "messages[0].content"),
        (message(content=[{"type": "text", "text": "x", "image_url": {"url": "http://x/"}}]), "image_url"),
        (message(content=[{"type": "text"}]), "messages[0].content"),
        (message(tool_calls=[{"id": "x"}]), "tool_calls"),
        (message(surprise=1), "messages[0]"),
    ],
    ids=lambda value: value[:70].decode("latin-1") if isinstance(value, bytes) else None,
)  # fmt: skip
def test_bodies_that_are_refused_name_the_field(body, param):
    with pytest.raises(InvalidRequest) as refusal:
        parse_chat(body)
    assert refusal.value.param == param
    assert len(refusal.value.message) < 400


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"echo": True}, "echo"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [[1], [2.5]]}, "prompt[1][0]"),
        ({"prompt": [True]}, "prompt[0]"),
        ({"prompt": {"text": "x"}}, "prompt"),
        ({"prompt": ["x"] * 17}, "prompt"),
        ({"prompt": ["x"] * 5, "n": 4}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"logprobs": True}, "logprobs"),
        ({"messages": []}, "messages"),
    ],
)
def test_completions_that_are_refused_name_the_field(fields, param):
    body = json.dumps({"model": "m", "prompt": "x"} | fields).encode()
    with pytest.raises(InvalidRequest) as refusal:
        parse_completion(body)
    assert refusal.value.param == param


def test_harmless_fields_that_clients_send_are_accepted():
    body = chat(
        user="me",
        store=False,
        metadata={"a": "b"},
        service_tier="auto",
        n=1,
        parallel_tool_calls=True,
        stream=True,
        stream_options={"include_usage": True},
        tools=[],
        tool_choice="none",
        functions=None,
        response_format={"type": "text"},
        modalities=["text"],
        logit_bias={},
        stop=None,
        temperature=None,
        safety_identifier="x",
        prompt_cache_key="y",
    )
    asked = parse_chat(body)
    assert (asked.stream, asked.include_usage, asked.n) == (True, True, 1)


def test_an_answer_can_be_sent_back_as_it_came():
    answered = {
        "role": "assistant", "content": "Hello", "refusal": None, "annotations": [], "audio": None,
        "function_call": None, "tool_calls": None,
    }  # fmt: skip
    asked = parse_chat(
        chat(messages=[{"role": "developer", "content": [{"type": "text", "text": "A"}]}, answered])
    )
    (conversation,) = asked.prompts
    assert [(turn.role, turn.content) for turn in conversation.turns] == [
        ("system", "A"),
        ("assistant", "Hello"),
    ]
