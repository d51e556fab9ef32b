import dataclasses
import math

import pytest
from tandem_common.errors import InvalidRequest
from tandem_common.generation import Generation, RequestClass, SamplingParams, StoppingParams
from tandem_common.generation_proto import generation_from_proto, generation_to_proto


def make(
    prompt: int = 3, resumed: int = 0, max_tokens: int = 5, token: int = 1, **sampling: float
) -> Generation:
    return Generation(
        request_id="r",
        token_ids=[token] * (prompt + resumed),
        num_prompt_tokens=prompt,
        namespace=b"n" * 16,
        sampling=SamplingParams(**sampling),  # type: ignore[arg-type]
        stopping=StoppingParams(max_tokens=max_tokens, stop_token_ids=frozenset({2})),
    )


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_k", -1),
        ("top_k", 10**400),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -2.1),
        ("seed", -1),
        ("seed", 2**64),
        ("logprobs", 21),
        ("logit_bias", {1: 101.0}),
        ("logit_bias", dict.fromkeys(range(1025), 0.0)),
    ],
)
def test_a_value_out_of_range_is_named(field: str, value: object) -> None:
    with pytest.raises(InvalidRequest, match=field) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert caught.value.param == field


def test_min_tokens_above_max_tokens_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="min_tokens"):
        StoppingParams(max_tokens=1, min_tokens=2)


def test_a_prompt_that_fills_the_context_gets_one_token_and_one_more_is_refused_with_both_numbers() -> None:
    make(prompt=16, max_tokens=1).check_limits(vocab_size=10, max_context_tokens=16)
    make(prompt=11, max_tokens=5).check_limits(vocab_size=10, max_context_tokens=16)
    with pytest.raises(InvalidRequest, match=r"17 tokens.*16"):
        make(prompt=17, max_tokens=1).check_limits(vocab_size=10, max_context_tokens=16)
    with pytest.raises(InvalidRequest, match="Lower max_tokens to 4"):
        make(prompt=12, max_tokens=5).check_limits(vocab_size=10, max_context_tokens=16)


@pytest.mark.parametrize("token", [10, 2**31, -1])
def test_token_ids_outside_the_models_output_are_refused(token: int) -> None:
    with pytest.raises(InvalidRequest, match=f"token id {token}"):
        make(token=token).check_limits(vocab_size=10, max_context_tokens=16)


def test_a_finished_resumption_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="nothing is left"):
        make(resumed=5).check_limits(vocab_size=10, max_context_tokens=16)


def test_the_message_and_back_changes_nothing() -> None:
    generation = Generation(
        request_id="r",
        token_ids=[1, 2, 3],
        num_prompt_tokens=2,
        namespace=b"n" * 16,
        model="m",
        sampling=SamplingParams(temperature=0.5, top_k=3, seed=2**64 - 1, logprobs=0, logit_bias={4: 0.5}),
        stopping=StoppingParams(max_tokens=9, min_tokens=1, stop_token_ids=frozenset({7, 8})),
        request_class=RequestClass.BATCH,
        traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    )
    assert generation_from_proto(generation_to_proto(generation)) == generation


def test_an_unknown_class_is_refused() -> None:
    message = generation_to_proto(make())
    message.request_class = 7  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match="request class 7"):
        generation_from_proto(message)


def test_another_seed_changes_nothing_else() -> None:
    params = SamplingParams(temperature=0.5, top_k=3, logit_bias={1: 2.0}, seed=1, logprobs=2)
    assert params.with_seed(7) == dataclasses.replace(params, seed=7)
    assert params.seed == 1
    with pytest.raises(InvalidRequest, match="seed"):
        params.with_seed(2**64)
