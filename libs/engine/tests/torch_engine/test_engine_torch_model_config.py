"""config.json is read as transformers means it, in the spellings of its versions 4 and 5, or refused."""

import json

import pytest
from tandem_engine.api import ModelError
from tandem_engine.torch_engine.model_config import RopeConfig, load_model_config, parse_model_config

BASE = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}
LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1,
    "high_freq_factor": 4,
    "original_max_position_embeddings": 8192,
}


def test_what_an_old_file_does_not_say_takes_the_values_of_its_time():
    config = parse_model_config(BASE)
    assert (config.num_kv_heads, config.head_dim) == (8, 8)
    assert config.rope == RopeConfig(theta=10_000.0)
    assert (config.tied_embeddings, config.qkv_bias, config.output_bias, config.mlp_bias) == (False,) * 4
    assert config.windows == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000, **LLAMA3}},
        {"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
        {"rope_theta": 500000.0, "rope_scaling": {"type": "llama3", **LLAMA3}, "rope_parameters": None},
    ],
)
def test_every_spelling_of_llama3_scaling_means_the_same(spelling):
    assert parse_model_config(BASE | spelling).rope == RopeConfig(
        theta=500_000.0,
        scaling="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=8192,
    )


def test_dtype_is_read_in_both_spellings():
    assert parse_model_config(BASE | {"torch_dtype": "bfloat16"}).dtype == "bfloat16"
    assert parse_model_config(BASE | {"dtype": "float16"}).dtype == "float16"


def test_biases_and_norms_follow_the_family():
    qwen2 = parse_model_config(BASE | {"architectures": ["Qwen2ForCausalLM"], "attention_bias": False})
    assert (qwen2.qkv_bias, qwen2.output_bias, qwen2.qk_norm) == (True, False, False)
    qwen3 = parse_model_config(BASE | {"architectures": ["Qwen3ForCausalLM"], "attention_bias": True})
    assert (qwen3.qkv_bias, qwen3.output_bias, qwen3.qk_norm) == (True, True, True)


@pytest.mark.parametrize(
    ("architecture", "fields", "windows"),
    [
        ("MistralForCausalLM", {"sliding_window": 16}, (16, 16, 16, 16)),
        ("MistralForCausalLM", {"sliding_window": None}, (0, 0, 0, 0)),
        ("MistralForCausalLM", {}, (4096, 4096, 4096, 4096)),
        ("Qwen2ForCausalLM", {"sliding_window": 16, "max_window_layers": 1}, (0, 0, 0, 0)),
        (
            "Qwen2ForCausalLM",
            {"sliding_window": 16, "max_window_layers": 3, "use_sliding_window": True},
            (0, 0, 0, 16),
        ),
        (
            "Qwen3ForCausalLM",
            {
                "sliding_window": 16,
                "use_sliding_window": True,
                "layer_types": ["full_attention", "sliding_attention"] * 2,
            },
            (0, 16, 0, 16),
        ),
        ("LlamaForCausalLM", {"sliding_window": 16}, (0, 0, 0, 0)),
    ],
)
def test_windows_are_those_of_the_family(architecture, fields, windows):
    assert parse_model_config(BASE | {"architectures": [architecture]} | fields).windows == windows


GEMMA3 = {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 16, "num_hidden_layers": 8}
LONGROPE = {"short_factor": [1] * 4, "long_factor": [2.5] * 4}


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"architectures": ["Gemma2ForCausalLM"], "sliding_window": 16}, (16, 0, 16, 0)),
        (GEMMA3, (16, 16, 16, 16, 16, 0, 16, 16)),
        (GEMMA3 | {"sliding_window_pattern": 3}, (16, 16, 0, 16, 16, 0, 16, 16)),
        ({"architectures": ["Phi3ForCausalLM"]}, (0, 0, 0, 0)),
        ({"architectures": ["Phi3ForCausalLM"], "sliding_window": 16}, (16, 16, 16, 16)),
        (
            {"architectures": ["MixtralForCausalLM"], "num_local_experts": 2, "num_experts_per_tok": 1},
            (0,) * 4,
        ),
    ],
)
def test_patterns_of_windows_are_those_of_the_family(fields, windows):
    assert parse_model_config(BASE | fields).windows == windows


def test_gemma_files_may_leave_out_what_the_family_implies():
    gemma2 = parse_model_config(BASE | {"architectures": ["Gemma2ForCausalLM"]})
    assert (gemma2.head_dim, gemma2.tied_embeddings, gemma2.activation) == (256, True, "gelu_pytorch_tanh")
    assert (gemma2.attention_softcap, gemma2.logit_softcap, gemma2.query_scale) == (50.0, 30.0, 1.0)
    assert gemma2.rope == gemma2.window_rope == RopeConfig(theta=10_000.0)
    gemma3 = parse_model_config(BASE | GEMMA3)
    assert (gemma3.attention_softcap, gemma3.logit_softcap) == (0.0, 0.0)
    assert (gemma3.rope.theta, gemma3.window_rope.theta) == (1_000_000.0, 10_000.0)
    # "hidden_act" of the first files was overridden by what the family has.
    assert parse_model_config(BASE | GEMMA3 | {"hidden_act": "silu"}).activation == "gelu_pytorch_tanh"


def test_a_null_softcap_is_none_and_an_absent_one_the_familys():
    gemma2 = BASE | {"architectures": ["Gemma2ForCausalLM"]}
    assert parse_model_config(gemma2 | {"attn_logit_softcapping": None}).attention_softcap == 0.0
    assert parse_model_config(gemma2 | {"final_logit_softcapping": 5}).logit_softcap == 5.0


@pytest.mark.parametrize("name", ["su", "yarn", "longrope"])
@pytest.mark.parametrize("kind", ["type", "rope_type"])
def test_every_spelling_of_longrope_means_the_same(name, kind):
    rope = parse_model_config(
        BASE
        | {
            "architectures": ["Phi3ForCausalLM"],
            "original_max_position_embeddings": 128,
            "rope_scaling": {kind: name, **LONGROPE},
        }
    ).rope
    assert (rope.scaling, rope.short_factors, rope.long_factors) == ("longrope", (1.0,) * 4, (2.5,) * 4)
    assert rope.attention_factor == pytest.approx((1 + 2 / 7) ** 0.5)  # the context grew by 2**2 from 2**7
    assert [rope.is_long(length) for length in (128, 129)] == [False, True]


@pytest.mark.parametrize(
    ("fields", "layers"),
    [({}, {0, 1, 2, 3}), ({"decoder_sparse_step": 2}, {1, 3}), ({"mlp_only_layers": [0, 2]}, {1, 3})],
)
def test_layers_with_experts_are_those_of_transformers(fields, layers):
    config = parse_model_config(
        BASE | {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 2} | fields
    )
    assert config.experts is not None
    assert config.experts.layers == layers


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (GEMMA3 | {"sliding_window": None}, ["sliding_window"]),
        (GEMMA3 | {"use_bidirectional_attention": True}, ["use_bidirectional_attention"]),
        (GEMMA3 | {"query_pre_attn_scalar": 0}, ["query_pre_attn_scalar"]),
        (GEMMA3 | {"final_logit_softcapping": -1.0}, ["final_logit_softcapping", "-1"]),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, ["full_attention", "llama", "vllm"]),
        ({"rope_parameters": 3}, ["rope_parameters", "3"]),
        (
            {
                "architectures": ["Phi3ForCausalLM"],
                "rope_scaling": {"type": "su", **LONGROPE, "long_factor": [1]},
            },
            ["long_factor", "4 positive"],
        ),
        ({"architectures": ["Phi3ForCausalLM"], "partial_rotary_factor": 0.4}, ["0.4", "even"]),
        (
            {"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 4, "num_experts_per_tok": 5},
            ["num_experts_per_tok (5)", "(4)"],
        ),
        ({"architectures": ["MixtralForCausalLM"]}, ["num_local_experts"]),
    ],
)
def test_what_makes_no_sense_in_a_family_is_refused_by_name(fields, words):
    with pytest.raises(ModelError) as error:
        parse_model_config(BASE | fields)
    assert all(word in str(error.value) for word in words), str(error.value)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"architectures": ["MambaForCausalLM"]}, ["MambaForCausalLM", "LlamaForCausalLM", "sglang", "vllm"]),
        (
            {"architectures": None, "model_type": "odd"},
            ["names none", "'odd'", "Qwen3ForCausalLM"],
        ),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"hidden_size": "64"}, ["hidden_size", "'64'", "int"]),
        ({"hidden_size": True}, ["hidden_size", "True"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads (3)"]),
        ({"hidden_act": "gelu"}, ["'gelu'", "silu"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, ["'yarn'", "llama3"]),
        (
            {"rope_scaling": {"rope_type": "llama3", "low_freq_factor": 4.0, "high_freq_factor": 4.0}},
            ["low_freq"],
        ),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor", "0.5"]),
        ({"rope_theta": -1.0}, ["rope_theta (-1)"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["quantised", "gptq", "sglang"]),
        ({"quantization_config": "odd"}, ["quantised", "sglang"]),
        ({"layer_types": ["full_attention"]}, ["layer_types", "4 layers"]),
        ({"head_dim": 7}, ["head_dim is 7"]),
    ],
)
def test_what_is_not_supported_is_refused_by_name(fields, words):
    with pytest.raises(ModelError) as error:
        parse_model_config(BASE | fields)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_missing_or_broken_file_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match=r"config\.json"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="JSON object"):
        load_model_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(BASE))
    assert load_model_config(tmp_path).family == "llama"
