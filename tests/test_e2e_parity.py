"""Greedy output equals that of the plain Hugging Face model, whoever computes which part of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tandem_client import Client
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

SUBJECTS = (
    "a fox",
    "a small boat",
    "the moon",
    "a lost key",
    "an old tree",
    "a red kite",
    "two friends",
    "a snail",
)
PROMPTS = (
    *(f"Tell me a story about {subject}." for subject in SUBJECTS),
    *(f"What colour is {thing}?" for thing in ("the sky", "grass", "snow", "a banana", "coal", "a tomato")),
    *(
        f"What is the capital of {land}?"
        for land in ("France", "Italy", "Spain", "Japan", "Egypt", "Peru", "Norway")
    ),
    *(f"What is {a} plus {b}?" for a, b in ((1, 2), (3, 4), (5, 5), (9, 8), (12, 7), (20, 22))),
    *(f"What is the opposite of {word}?" for word in ("hot", "big", "fast", "happy", "open", "early")),
    *(f"What sound does {animal} make?" for animal in ("a dog", "a cat", "a cow", "a duck", "an owl")),
    *("Hi!", "Who are you?", "Thank you.", "Good morning", "Can you count to ten?", "Tell me a joke."),
    *(
        "Once upon a time",
        "Please say something about " + "very " * 60 + "long roads.",
        "ü漢🙂",
        "?",
        "x = 1\n\ny = 2",
    ),
    "Which day comes after Monday?",
)
MAX_TOKENS = 32


def reference(model_dir: Path, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
    """What transformers generates, one prompt at a time, in float32."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    answers = []
    for prompt in prompts:
        ids = torch.tensor([list(prompt)])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=max_tokens
            )
        answers.append(out[0, len(prompt) :].tolist())
    return answers


def chat_ids(tokenizer: Any, prompt: str) -> list[int]:
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
    )
    ids: list[int] = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    return ids


@pytest.fixture(scope="module")
def expected(shipped_model: Path) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(shipped_model)
    answers = reference(shipped_model, [chat_ids(tokenizer, prompt) for prompt in PROMPTS], MAX_TOKENS)
    texts: list[str] = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    return texts


def test_there_are_fifty_different_prompts_and_the_answers_differ(expected: list[str]) -> None:
    assert len(set(PROMPTS)) == len(PROMPTS) >= 50
    assert len(set(expected)) > 20


def ask_all(stack: Any) -> list[str]:
    def ask(prompt: str) -> str:
        answer: str = stack.chat(prompt, temperature=0, max_tokens=MAX_TOKENS)["choices"][0]["message"][
            "content"
        ]
        return answer

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(ask, PROMPTS))


def num_remote_prefills(stack: Any) -> int:
    lines = "".join(stack.log(name) for name in stack.workers if name.startswith("decode")).splitlines()
    return sum('"request ended"' in line and '"prefill_worker_id":"prefill-' in line for line in lines)


def test_two_prefill_and_two_decode_workers_answer_as_transformers_does(
    start_stack: Any, expected: list[str]
) -> None:
    # In turn, so that short prompts are handed over too; the default policy would keep them local.
    with start_stack("--policy", "round_robin", "--kv-cache-mib", "64") as stack:
        assert ask_all(stack) == expected
        # Not those of which a decode worker held all but a block's worth already.
        assert num_remote_prefills(stack) > len(PROMPTS) // 2
        stack.assert_quiet()


def test_the_default_policy_answers_the_same(stack: Any, expected: list[str]) -> None:
    assert ask_all(stack) == expected


def test_an_aggregated_worker_answers_the_same(start_stack: Any, expected: list[str]) -> None:
    with start_stack("--prefill", "0", "--decode", "0", "--aggregated", "1", "--kv-cache-mib", "64") as stack:
        assert ask_all(stack) == expected
        stack.assert_quiet()


SMALL: dict[str, Any] = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # Wide enough that the argmax moves from token to token: a flat model would hide mistakes.
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": LlamaConfig(
        **SMALL,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
    "mistral": MistralConfig(**SMALL, sliding_window=None),
    "qwen2": Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SMALL, head_dim=32),
}


def make_model(directory: Path, config: PretrainedConfig, tokenizer_from: Path) -> Path:
    torch.manual_seed(7)
    AutoModelForCausalLM.from_config(config).to(torch.float32).save_pretrained(
        directory, max_shard_size="200KB"
    )
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(tokenizer_from / name, directory)
    return directory


@pytest.mark.parametrize("family", FAMILIES)
def test_a_random_model_of_each_family_answers_as_transformers_does(
    family: str, start_stack: Any, shipped_model: Path, tmp_path: Path
) -> None:
    model_dir = make_model(tmp_path / family, FAMILIES[family], shipped_model)
    generator = torch.Generator().manual_seed(3)
    prompts = [
        torch.randint(3, 4096, (length,), generator=generator).tolist()
        for length in (1, 15, 16, 17, 40, 130, 300)
    ]
    expected = reference(model_dir, prompts, 24)
    assert len({token for answer in expected for token in answer}) > 40, "the model repeats itself"
    options = ("--model", str(model_dir), "--prefill", "1", "--decode", "1", "--kv-cache-mib", "32")
    with start_stack(*options, "--setting", "worker.max_step_tokens=64") as stack:
        with Client(stack.grpc_address) as client:
            answers = [
                list(client.generate(prompt, model=family, max_tokens=24, temperature=0).token_ids)
                for prompt in prompts
            ]
        # transformers keeps the end token, which Tandem does not send.
        assert answers == [answer[:-1] if answer[-1] == 2 else answer for answer in expected]
        text = stack.complete(prompts[4], max_tokens=24, temperature=0)["choices"][0]["text"]
        tokenizer = AutoTokenizer.from_pretrained(model_dir)
        assert text == tokenizer.decode(expected[4], skip_special_tokens=True)
        stack.assert_quiet()
