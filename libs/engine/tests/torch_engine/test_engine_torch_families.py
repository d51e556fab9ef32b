"""What single families have of their own: it counts, it is read as published, and bfloat16 follows it."""

import copy
import json
import shutil

import pytest
import torch
from tandem_engine.api import ModelError

MAX_DIFFERENCE = 1e-4
IN_BFLOAT16 = [
    "llama",
    "llama2",
    "llama3",
    "mistral",
    "mistral-window",
    "mixtral",
    "qwen2",
    "qwen2.5",
    "qwen3",
    "qwen3-moe",
    "gemma2",
    "gemma3",
    "phi3",
    "phi4-mini",
]
WITH_EXPERTS = ("mixtral", "qwen3-moe")


def rewritten(source, target, changes):
    """A copy of a model directory with another config.json; a change to `...` removes the key."""
    shutil.copytree(source, target)
    config = json.loads((target / "config.json").read_text()) | changes
    config = {name: value for name, value in config.items() if value is not ...}
    (target / "config.json").write_text(json.dumps(config))
    return target


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("gemma2", {"attn_logit_softcapping": None}),
        ("gemma2", {"final_logit_softcapping": None}),
        ("gemma2", {"query_pre_attn_scalar": 32}),
        ("gemma2", {"layer_types": ["full_attention"] * 4}),
        ("gemma2", {"hidden_activation": "silu"}),
        ("gemma3", {"layer_types": ["full_attention"] * 4}),
        ("gemma3", {"rope_parameters": {"full_attention": {"rope_theta": 1e5}}}),
        ("phi3-window", {"sliding_window": None}),
        ("phi3-partial", {"rope_parameters": {"partial_rotary_factor": 0.75}}),
        ("qwen2.5", {"use_sliding_window": True, "sliding_window": 19, "layer_types": ...}),
        ("qwen3-window", {"use_sliding_window": False}),
        ("qwen3-window", {"max_window_layers": 2, "layer_types": ...}),
        ("mixtral-window", {"sliding_window": None}),
        ("phi4-mini", {"rope_parameters": {"partial_rotary_factor": 0.75}}),
        ("qwen3-moe", {"norm_topk_prob": False}),
        ("qwen3-moe", {"num_experts_per_tok": 3}),
        ("mixtral", {"num_experts_per_tok": 1}),
        ("mistral-window", {"sliding_window": 22}),
        ("llama3", {"rope_parameters": {"rope_theta": 500.0}}),
    ],
)
def test_every_setting_of_a_family_changes_the_logits(
    name, changes, tiny_model, tmp_path, load, random_prompt
):
    # A control: the comparisons with transformers would notice if it were ignored.
    path = tiny_model(name).path
    as_it_is, changed = load(path), load(rewritten(path, tmp_path / "changed", changes))
    prompt = random_prompt(60)
    right, wrong = (driver.logits(driver.track(prompt), 60) for driver in (as_it_is, changed))
    assert (right - wrong).abs().max() > 100 * MAX_DIFFERENCE


def test_gemma3_of_transformers_4_is_read_alike(tiny_model, tmp_path, load, random_prompt):
    path = tiny_model("gemma3").path
    old = rewritten(
        path,
        tmp_path / "old",
        {
            "rope_parameters": ...,
            "layer_types": ...,
            "rope_theta": 1e5,
            "rope_local_base_freq": 1e3,
            "rope_scaling": {"rope_type": "linear", "factor": 4.0},
            "sliding_window_pattern": 3,
        },
    )
    prompt = random_prompt(60)
    new_logits, old_logits = (driver.logits(driver.track(prompt), 60) for driver in (load(path), load(old)))
    assert torch.equal(new_logits, old_logits)


def test_a_window_that_is_named_but_not_used_changes_nothing(tiny_model, tmp_path, load, random_prompt):
    # As Qwen2.5's published files have it; transformers does not save it that way.
    model, prompt = tiny_model("qwen2.5"), random_prompt(60)
    named = {"use_sliding_window": False, "sliding_window": 19, "max_window_layers": 1, "layer_types": ...}
    driver = load(rewritten(model.path, tmp_path / "named", named))
    logits = driver.logits(driver.track(prompt), 60)
    assert (logits - model.logits(prompt)[-1]).abs().max() < MAX_DIFFERENCE


@pytest.mark.parametrize("chunks", [(60,), (13, 1, 30, 16), (1,) * 60])
def test_longrope_within_the_first_context_is_that_of_transformers(chunks, tiny_model, load, random_prompt):
    model = tiny_model("phi4-mini")
    driver = load(model.path, max_context_tokens=64)
    prompt = random_prompt(60)
    track = driver.track(prompt)
    for chunk in chunks:
        logits = driver.logits(track, chunk)
    assert (logits - model.logits(prompt)[-1]).abs().max() < MAX_DIFFERENCE
    assert driver.generate(driver.track(prompt[:9]), 24, chunk=4) == model.greedy(prompt[:9], 24)


@pytest.mark.parametrize("chunks", [(90,), (13, 1, 30, 46), (1,) * 90])
def test_longrope_beyond_the_first_context_is_that_of_transformers(chunks, tiny_model, load, random_prompt):
    model = tiny_model("phi4-mini")
    driver = load(model.path)
    prompt = random_prompt(90)
    track = driver.track(prompt)
    for chunk in chunks:
        logits = driver.logits(track, chunk)
    assert (logits - model.logits(prompt)[-1]).abs().max() < MAX_DIFFERENCE
    assert driver.generate(driver.track(prompt), 24, chunk=17) == model.greedy(prompt, 24)


def test_engines_with_short_and_long_longrope_do_not_exchange_blocks(tiny_model, load):
    path = tiny_model("phi4-mini").path
    short = load(path, max_context_tokens=64).info.layout_digest
    assert load(path, max_context_tokens=32).info.layout_digest == short
    assert load(path, max_context_tokens=65).info.layout_digest != short


def test_an_expert_that_is_missing_is_named(tiny_model, tmp_path, load):
    path = rewritten(tiny_model("mixtral").path, tmp_path / "more", {"num_local_experts": 6})
    with pytest.raises(ModelError, match=r"shape \(5, 64\), but config.json asks for \(6, 64\)"):
        load(path)


@pytest.mark.parametrize("name", IN_BFLOAT16)
def test_bfloat16_takes_the_token_of_transformers_where_rounding_leaves_no_doubt(
    name, tiny_model, load, random_prompt
):
    model = tiny_model(name)
    # Beyond this context LongRoPE would have other angles than transformers at the beginning.
    driver = load(model.path, dtype="bfloat16", max_context_tokens=64)
    rounded = copy.deepcopy(model.reference).bfloat16()
    num_clear, num_tokens = 0, 0
    for seed, length in enumerate((5, 24)):
        prompt = random_prompt(length, seed)
        output = driver.generate(driver.track(prompt), 38, chunk=11)
        token_ids = torch.tensor(prompt + output)
        with torch.inference_mode():
            their_logits = rounded(token_ids[None], use_cache=False).logits[0].float()
        exact = model.logits(token_ids.tolist())
        # How far rounding moves the logits of transformers itself: ours may be rounded elsewhere, but no worse.
        exact, their_logits, drawn = exact[length - 1 : -1], their_logits[length - 1 : -1], token_ids[length:]
        errors = (their_logits - exact).abs().amax(-1)
        doubt = 2 * errors.maximum(errors.median())
        best, second = exact.topk(2, -1).values.unbind(-1)
        clear = best - second > doubt
        lost = best - exact.gather(-1, drawn[:, None])[:, 0]
        # Rounding can tip a router to another expert, here or in transformers alone: then logits jump.
        assert (lost > doubt).sum() <= (2 if name in WITH_EXPERTS else 0)
        assert (lost > 0)[clear].sum() <= (2 if name in WITH_EXPERTS else 0)
        num_clear, num_tokens = num_clear + int(clear.sum()), num_tokens + len(drawn)
    assert num_clear > num_tokens / 8  # else the test proves little
