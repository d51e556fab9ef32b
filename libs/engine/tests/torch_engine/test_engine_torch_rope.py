"""Angles are those of transformers, and turning keeps lengths and relative positions."""

import pytest
import torch
from tandem_engine.torch_engine.model_config import RopeConfig
from tandem_engine.torch_engine.rope import RotaryTable, inverse_frequencies, rotate
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(("scaling", "fields"), [("linear", {"factor": 4.0}), ("llama3", LLAMA3)])
def test_frequencies_are_those_of_transformers(scaling, fields):
    config = LlamaConfig(
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": scaling, "rope_theta": 500000.0, **fields},
    )
    expected, _ = ROPE_INIT_FUNCTIONS[scaling](config, "cpu")
    ours = inverse_frequencies(RopeConfig(theta=500000.0, scaling=scaling, **fields), 128)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


def test_scores_depend_on_the_distance_only():
    table = RotaryTable(RopeConfig(theta=100.0), 16, 64, torch.float32, "cpu")
    q, k = torch.randn(2, 1, 1, 16, generator=torch.Generator().manual_seed(1))

    def score(at_q, at_k):
        turned_q = rotate(q, *table.at(torch.tensor([at_q])))
        turned_k = rotate(k, *table.at(torch.tensor([at_k])))
        return (turned_q * turned_k).sum()

    torch.testing.assert_close(score(9, 4), score(60, 55))
    assert not torch.isclose(score(9, 4), score(9, 5))
    torch.testing.assert_close(rotate(q, *table.at(torch.tensor([33]))).norm(), q.norm())
    assert torch.equal(rotate(q, *table.at(torch.tensor([0]))), q)
