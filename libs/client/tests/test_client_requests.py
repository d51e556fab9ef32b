"""Requests as messages of the contract."""

from __future__ import annotations

import pytest
from tandem.v1 import generation_pb2
from tandem_client import ChatMessage, GenerationOptions, InvalidRequest
from tandem_client.requests import chat_request, generate_request, tokenize_request


def test_what_is_left_out_stays_absent():
    options = generate_request("m", "hello", {}).options
    assert [field.name for field, _ in options.ListFields()] in ([], ["sampling"])
    assert not options.HasField("max_tokens")
    assert options.sampling.ListFields() == []


def test_every_option_reaches_its_field():
    options = GenerationOptions(
        max_tokens=5,
        min_tokens=2,
        temperature=0.0,
        top_k=3,
        top_p=0.5,
        min_p=0.25,
        repetition_penalty=1.5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        logit_bias={7: -100.0},
        seed=2**64 - 1,
        logprobs=0,
        stop=["a", "b"],
        stop_token_ids=[1],
        ignore_eos=True,
        request_class="batch",
        ttft_deadline_s=1.5,
    )
    assert set(options) == set(GenerationOptions.__annotations__)
    message = generate_request("m", "hello", options).options
    assert (message.max_tokens, message.min_tokens, message.ignore_eos) == (5, 2, True)
    assert (list(message.stop), list(message.stop_token_ids)) == (["a", "b"], [1])
    assert message.request_class == generation_pb2.REQUEST_CLASS_BATCH
    assert message.ttft_deadline_ms == 1500
    sampling = message.sampling
    assert sampling.HasField("temperature")
    assert sampling.HasField("logprobs")
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.0, 3, 0.5, 0.25)
    assert (sampling.repetition_penalty, sampling.presence_penalty, sampling.frequency_penalty) == (
        1.5,
        0.5,
        -0.5,
    )
    assert (dict(sampling.logit_bias), sampling.seed, sampling.logprobs) == ({7: -100.0}, 2**64 - 1, 0)


def test_one_stop_string_needs_no_list():
    assert list(generate_request("m", "x", {"stop": "END"}).options.stop) == ["END"]


def test_an_unknown_option_is_refused_by_name():
    with pytest.raises(TypeError, match="temprature"):
        generate_request("m", "x", {"temprature": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("top_k", -1),
        ("max_tokens", "ten"),
        ("logit_bias", {-1: 1.0}),
        ("seed", 2**64),
        ("ttft_deadline_s", -1),
    ],
)
def test_a_value_that_the_contract_cannot_carry_is_refused_by_name(name, value):
    with pytest.raises(InvalidRequest, match=name):
        generate_request("m", "x", {name: value})


def test_a_refused_prompt_is_not_in_the_message():
    with pytest.raises(InvalidRequest) as caught:
        generate_request("m", [123456, -654321], {})
    assert "654321" not in str(caught.value)


def test_an_empty_list_of_tokens_is_still_a_prompt_of_tokens():
    assert generate_request("m", [], {}).WhichOneof("prompt") == "token_ids"


def test_messages_may_be_objects_mappings_or_one_string():
    expected = chat_request("m", [ChatMessage("user", "hi")], {})
    assert chat_request("m", [{"role": "user", "content": "hi"}], {}) == expected
    assert chat_request("m", "hi", {}) == expected


def test_a_message_with_other_keys_is_refused():
    with pytest.raises(InvalidRequest, match="role and content"):
        chat_request("m", [{"role": "user", "text": "hi"}], {})


def test_a_conversation_is_tokenized_through_the_template():
    assert tokenize_request("m", "text").WhichOneof("input") == "text"
    assert tokenize_request("m", [ChatMessage("user", "hi")]).WhichOneof("input") == "conversation"
