"""Generations to and from their contract messages."""

from __future__ import annotations

from typing import Literal, get_args

from tandem.v1 import generation_pb2 as pb

from tandem_common.errors import InvalidRequest
from tandem_common.generation import Generation, RequestClass, SamplingParams, StoppingParams
from tandem_common.token_ids import pack_token_ids, unpack_token_ids

_OptionalSampling = Literal[
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "logprobs",
]
_OPTIONAL_SAMPLING: tuple[_OptionalSampling, ...] = get_args(_OptionalSampling)


def sampling_from_proto(message: pb.SamplingParams) -> SamplingParams:
    """Sampling parameters with the defaults filled in; InvalidRequest for a value out of range."""
    present = {name: getattr(message, name) for name in _OPTIONAL_SAMPLING if message.HasField(name)}
    return SamplingParams(logit_bias=dict(message.logit_bias), **present)


def sampling_to_proto(sampling: SamplingParams) -> pb.SamplingParams:
    """The message, with every field set but `logprobs` when it is None."""
    return pb.SamplingParams(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        seed=sampling.seed,
        logprobs=sampling.logprobs,
        logit_bias=sampling.logit_bias,
    )


def request_class_from_proto(value: pb.RequestClass.ValueType) -> RequestClass:
    """The class; unspecified means interactive. InvalidRequest for a number that has no meaning here."""
    if value == pb.REQUEST_CLASS_UNSPECIFIED:
        return RequestClass.INTERACTIVE
    try:
        return RequestClass(value)
    except ValueError:
        raise InvalidRequest(f"unknown request class {value}", param="request_class") from None


def generation_from_proto(message: pb.Generation) -> Generation:
    """Check and convert; InvalidRequest when a field is missing or out of range."""
    try:
        token_ids = unpack_token_ids(message.token_ids)
    except ValueError:
        raise InvalidRequest("token_ids is no whole number of ids", param="token_ids") from None
    return Generation(
        request_id=message.request_id,
        model=message.model,
        token_ids=token_ids.tolist(),
        num_prompt_tokens=message.num_prompt_tokens,
        namespace=message.namespace,
        sampling=sampling_from_proto(message.sampling),
        stopping=StoppingParams(
            max_tokens=message.stopping.max_tokens,
            min_tokens=message.stopping.min_tokens,
            stop_token_ids=frozenset(message.stopping.stop_token_ids),
        ),
        request_class=request_class_from_proto(message.request_class),
        traceparent=message.traceparent,
    )


def generation_to_proto(generation: Generation) -> pb.Generation:
    """The message that `generation_from_proto` reads back."""
    return pb.Generation(
        request_id=generation.request_id,
        model=generation.model,
        token_ids=pack_token_ids(generation.token_ids),
        num_prompt_tokens=generation.num_prompt_tokens,
        namespace=generation.namespace,
        sampling=sampling_to_proto(generation.sampling),
        stopping=pb.StoppingParams(
            max_tokens=generation.stopping.max_tokens,
            min_tokens=generation.stopping.min_tokens,
            stop_token_ids=sorted(generation.stopping.stop_token_ids),
        ),
        request_class=pb.RequestClass.ValueType(generation.request_class.value),
        traceparent=generation.traceparent,
    )
