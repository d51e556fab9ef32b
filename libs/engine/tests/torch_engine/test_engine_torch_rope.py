"""Angles are those of transformers, and turning keeps lengths and relative positions."""

import pytest
import torch
from tandem_engine.torch_engine.model_config import RopeConfig, parse_model_config
from tandem_engine.torch_engine.rope import RotaryTable, inverse_frequencies, rotate
from transformers import LlamaConfig, Phi3Config
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


@pytest.mark.parametrize(
    ("scaling", "fields"),
    [
        ("linear", {"factor": 4.0}),
        ("llama3", LLAMA3),  # Llama 3.1 and 3.3
        ("llama3", LLAMA3 | {"factor": 32.0}),  # Llama 3.2
        ("llama3", LLAMA3 | {"high_freq_factor": 8.0, "original_max_position_embeddings": 4096}),
    ],
)
def test_frequencies_are_those_of_transformers(scaling, fields):
    config = LlamaConfig(
        head_dim=128,
        max_position_embeddings=131072,
        rope_parameters={"rope_type": scaling, "rope_theta": 500000.0, **fields},
    )
    expected, _ = ROPE_INIT_FUNCTIONS[scaling](config, "cpu")
    ours = inverse_frequencies(RopeConfig(theta=500000.0, scaling=scaling, **fields), 128)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("num_positions", "name"), [(4096, "short_factor"), (4097, "long_factor")])
def test_longrope_takes_the_factors_for_the_context(num_positions, name):
    factors = {"short_factor": [1.0 + i / 10 for i in range(8)], "long_factor": [2.0 + i for i in range(8)]}
    reference = Phi3Config(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=131072,
        original_max_position_embeddings=4096,
        pad_token_id=0,
        rope_parameters={"rope_type": "longrope", "rope_theta": 1e4, **factors},
    )
    expected, attention_factor = ROPE_INIT_FUNCTIONS["longrope"](reference, "cpu", seq_len=num_positions)
    raw = reference.to_dict() | {"architectures": ["Phi3ForCausalLM"]}
    ours = parse_model_config(raw).rope
    assert ours.attention_factor == attention_factor
    torch.testing.assert_close(inverse_frequencies(ours, 16, num_positions), expected, rtol=1e-6, atol=0)


def test_what_is_beyond_the_rotary_part_of_a_head_stays():
    table = RotaryTable(RopeConfig(theta=100.0, share=0.5), 16, 64, torch.float32, "cpu")
    q = torch.randn(1, 1, 16, generator=torch.Generator().manual_seed(1))
    turned = rotate(q, *table.at(torch.tensor([9])))
    assert torch.equal(turned[..., 8:], q[..., 8:])
    assert not torch.isclose(turned[..., :8], q[..., :8]).any()


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
