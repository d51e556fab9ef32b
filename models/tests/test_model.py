"""The shipped model: its files, its tokenizer and template, and some answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment
from safetensors import safe_open
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "models" / "tandem-tiny"

CHATS = [
    [{"role": "user", "content": "Hi!"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 3 plus 4?"}],
    [
        {"role": "user", "content": "  spaces and a line end \n"},
        {"role": "assistant", "content": "Yes.\n\nSecond paragraph."},
        {"role": "user", "content": "äöü 漢字 🎈"},
    ],
    [
        {"role": "assistant", "content": "I begin."},
        {"role": "system", "content": ""},
        {"role": "user", "content": "{{ x }}"},
    ],
    [{"role": "user", "content": [{"type": "text", "text": "In "}, {"type": "text", "text": "parts"}]}],
    [{"role": "assistant", "content": None}],
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(MODEL)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)


def answer_ids(model: Any, tokenizer: Any, chat: list[dict[str, str]], limit: int = 40) -> list[int]:
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    prompt = torch.tensor([tokenizer.encode(text)])
    output = model.generate(prompt, max_new_tokens=limit, do_sample=False)
    ids: list[int] = output[0, prompt.shape[1] :].tolist()
    return ids


def test_files_are_small_and_weights_are_bfloat16() -> None:
    assert sum(path.stat().st_size for path in MODEL.iterdir()) <= 12_000_000
    with safe_open(MODEL / "model.safetensors", framework="pt") as weights:
        names = list(weights.keys())
        assert {weights.get_tensor(name).dtype for name in names} == {torch.bfloat16}
        assert "lm_head.weight" not in names


def test_model_has_the_promised_shape(model: Any, tokenizer: Any) -> None:
    config = json.loads((MODEL / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["tie_word_embeddings"] is True
    assert config["num_key_value_heads"] < config["num_attention_heads"]
    assert config["max_position_embeddings"] >= 2048
    assert config["vocab_size"] == len(tokenizer)
    assert 3_000_000 <= sum(parameter.numel() for parameter in model.parameters()) <= 6_000_000


def test_both_end_tokens_stop_generation(tokenizer: Any) -> None:
    ends = json.loads((MODEL / "generation_config.json").read_text())["eos_token_id"]
    assert tokenizer.convert_ids_to_tokens(ends) == ["<|im_end|>", "<|endoftext|>"]
    assert tokenizer.eos_token == "<|im_end|>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n",
        "  two  spaces\tand a tab\r\n",
        "Grüße, Žluťoučký kůň, Ελληνικά, Русский",
        "漢字かな交じり文 한국어 ไทย हिन्दी العربية",
        "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u200b\ufeff\u0000\x7f",
        "".join(chr(code) for code in range(1, 0x250)),
        "\U0010ffff\ue000",
        "1234567890 3.14 x² ½",
    ],
)
def test_every_text_survives_encoding_and_decoding(tokenizer: Any, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_every_byte_has_a_token(tokenizer: Any) -> None:
    vocabulary = tokenizer.get_vocab()
    assert all(symbol in vocabulary for symbol in ByteLevel.alphabet())


def test_special_tokens_are_single_ids_and_skipped_on_request(tokenizer: Any) -> None:
    ids = tokenizer.encode("<|im_start|>a<|im_end|><|endoftext|>", add_special_tokens=False)
    assert len(ids) == 4
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a"


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("prompted", [True, False])
def test_template_renders_the_same_in_plain_jinja(
    tokenizer: Any, chat: list[dict[str, Any]], prompted: bool
) -> None:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((MODEL / "chat_template.jinja").read_text(encoding="utf-8"))
    plain = template.render(messages=chat, add_generation_prompt=prompted)
    assert plain == tokenizer.apply_chat_template(chat, add_generation_prompt=prompted, tokenize=False)


def test_template_writes_chatml(tokenizer: Any) -> None:
    text = tokenizer.apply_chat_template(CHATS[1], add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nWhat is 3 plus 4?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Hi!", "Hello"),
        ("Who are you?", "Tandem"),
        ("What is the capital of France?", "Paris"),
        ("what's the capital of japan", "Tokyo"),
        ("What colour is the sky?", "blue"),
        ("What is the opposite of hot?", "cold"),
        ("What is 3 plus 4?", "7"),
        ("Thank you", "welcome"),
        ("Count to 5.", "1, 2, 3, 4, 5"),
        ("What comes after Monday?", "Tuesday"),
    ],
)
def test_simple_questions_are_answered_and_the_answer_ends(
    model: Any, tokenizer: Any, question: str, expected: str
) -> None:
    ids = answer_ids(model, tokenizer, [{"role": "user", "content": question}])
    assert expected in tokenizer.decode(ids)
    assert ids[-1] == tokenizer.eos_token_id


def test_follow_up_question_is_understood(model: Any, tokenizer: Any) -> None:
    chat = [
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "The capital of France is Paris."},
        {"role": "user", "content": "And of Italy?"},
    ]
    assert "Rome" in tokenizer.decode(answer_ids(model, tokenizer, chat))


def test_story_is_about_what_was_asked_for_and_ends(model: Any, tokenizer: Any) -> None:
    ids = answer_ids(
        model, tokenizer, [{"role": "user", "content": "Tell me a story about a fox."}], limit=300
    )
    assert "fox" in tokenizer.decode(ids)
    assert 80 < len(ids) < 300
    assert ids[-1] == tokenizer.eos_token_id


def test_question_after_a_long_system_message_is_answered(model: Any, tokenizer: Any) -> None:
    chat = [
        {"role": "system", "content": "You are a helpful assistant. " + "Stay calm and polite. " * 300},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    assert len(tokenizer.apply_chat_template(chat)["input_ids"]) > 1500
    assert "Paris" in tokenizer.decode(answer_ids(model, tokenizer, chat, limit=12))


def corpus(seed: int, hash_seed: str = "0") -> bytes:
    """The text that the script writes in a process of its own, free of anything in this one."""
    command = [sys.executable, "-m", "models.make_corpus", "--count", "500", "--seed", str(seed)]
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True).stdout


def test_corpus_depends_on_the_seed_alone() -> None:
    assert corpus(1, "1") == corpus(1, "2")
    assert corpus(1) != corpus(2)


def test_corpus_holds_complete_chats_and_texts() -> None:
    for line in corpus(3).decode("utf-8").splitlines():
        record = json.loads(line)
        if "text" in record:
            assert record["text"]
            continue
        roles = [message["role"] for message in record["messages"]]
        chat = roles[1:] if roles[0] == "system" else roles
        assert chat == ["user", "assistant"] * (len(chat) // 2)
        assert chat
        assert all(message["content"].strip() for message in record["messages"])
        assert "{" not in "".join(message["content"] for message in record["messages"])
