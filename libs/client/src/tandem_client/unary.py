"""Time limits and answers of the calls with one response; the limits are those of the contract."""

from __future__ import annotations

from tandem.v1 import inference_pb2

from tandem_client.results import Model

TOKENIZE_S = 10.0
LIST_MODELS_S = 5.0


def models_from_proto(response: inference_pb2.ListModelsResponse) -> tuple[Model, ...]:
    """The models that a message lists."""
    return tuple(Model(id=model.id, max_context_tokens=model.max_context_tokens) for model in response.models)
