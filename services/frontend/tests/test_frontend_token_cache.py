"""Pieces of text: together they are the text, and their tokens are its tokens."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_frontend.chat_template import ChatTurn
from tandem_frontend.token_cache import PIECE_SIZE, TokenCache, control_of, cuts_between_words, pieces_of
from tokenizers import Regex, Tokenizer, models, pre_tokenizers

# Words, gaps of every kind, and what tokenizers treat in ways of their own.
FRAGMENTS = [
    "the",
    " fox",
    " ",
    "  ",
    "\n",
    "\n\n",
    "don't",
    "3",
    "日本",
    "é",
    "e\u0301",
    "🦊",
    "!",
    "<|im_",
    " a",
    "A b",
    "\nthe",
    ".\n",
    "<|im_end|>",
    "<|im_start|>",
    " 42",
    " (",
    "\t",
    "\0",
]
# Their expressions are what matters for cutting.
GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA_3 = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
QWEN = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}"
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

texts = st.lists(st.sampled_from(FRAGMENTS), max_size=900).map("".join)


@given(texts)
def test_pieces_together_are_the_text(text):
    pieces = list(pieces_of(text))
    assert "".join(pieces) == text
    assert all(len(piece) >= PIECE_SIZE for piece in pieces[:-1])


@given(texts, st.integers(0, 900))
def test_texts_that_begin_alike_share_their_first_pieces(text, position):
    other = text[:position] + "changed" + text[position:]
    shared = [a for a, b in zip(pieces_of(text), pieces_of(other), strict=False) if a == b]
    assert sum(map(len, shared)) >= position - 2 * PIECE_SIZE - 400


@given(texts)
def test_tokens_of_pieces_are_the_texts_tokens(local_model, text):
    tokenizer = local_model.tokenizer
    rendered = tokenizer._template.render(
        [ChatTurn("user", text)]
    )  # what users spell there takes another way
    control = control_of(tokenizer._spec)
    cache = TokenCache(tokenizer._encode_all, control, max_characters=4 * PIECE_SIZE, max_words=12)
    expected = tokenizer._tokenizer.encode(rendered, add_special_tokens=False).ids
    assert cache.encode(rendered).tolist() == expected
    assert cache.encode(rendered).tolist() == expected
    cache.check_integrity()


def test_what_was_encoded_before_is_not_encoded_again():
    encoded = []

    def encode_all(texts):
        encoded.extend(texts)
        return [[len(text)] for text in texts]

    cache = TokenCache(encode_all)
    prefix = "word " * 500
    first = cache.encode(prefix + "one")
    assert cache.num_unknown(prefix + "two") < 2 * PIECE_SIZE
    encoded.clear()
    assert len(cache.encode(prefix + "two")) == len(first)
    assert encoded == [" two"]


def test_a_word_is_encoded_once_and_long_ones_are_not_kept():
    encoded = []

    def encode_all(texts):
        encoded.extend(texts)
        return [[len(text)] for text in texts]

    cache = TokenCache(encode_all)
    long = " " + "x" * 100
    assert cache.encode("a fox a fox" + long).tolist() == [1, 4, 2, 4, 101]
    assert encoded == ["a", " fox", " a", long]
    encoded.clear()
    assert cache.encode("a fox" + long).tolist() == [1, 4, 101]
    assert encoded == [long]
    cache.check_integrity()


def test_what_a_template_puts_around_words_is_no_part_of_them():
    encoded = []

    def encode_all(texts):
        encoded.extend(texts)
        return [[len(text)] for text in texts]

    cache = TokenCache(encode_all, re.compile(r"(<<end>>|<<)"))
    for word in ("fox", "owl"):
        cache.encode(f"<<user\n{word}<<end>>\n<<")
    assert encoded == ["<<", "user\n", "fox", "<<end>>", "\n", "owl"]


def test_added_tokens_that_are_looked_for_in_normalized_text_are_not_cut_out(local_model):
    spec = local_model.tokenizer._spec
    assert control_of(spec) is not None
    assert control_of(spec | {"added_tokens": []}) is None
    normalized = spec["added_tokens"][0] | {"normalized": True}
    assert control_of(spec | {"added_tokens": [*spec["added_tokens"][1:], normalized]}) is None


def test_of_two_control_tokens_at_one_place_the_longer_is_cut_out(local_model):
    tokenizer = Tokenizer.from_str(local_model.tokenizer._tokenizer.to_str())
    tokenizer.add_special_tokens(["<|im_", "<|im_end|>s"])
    spec = json.loads(tokenizer.to_str())
    text = "a<|im_end|>ss<|im_start|><|im_<|im_end|>"
    cache = TokenCache(
        lambda texts: [each.ids for each in tokenizer.encode_batch(texts, add_special_tokens=False)],
        control_of(spec),
    )
    assert cache.encode(text).tolist() == tokenizer.encode(text, add_special_tokens=False).ids


def test_the_models_own_tokenizer_is_cached(local_model):
    assert local_model.tokenizer._cache is not None


@pytest.mark.parametrize(
    ("pattern", "cuts"),
    [
        (GPT_2, True),
        (LLAMA_3, True),
        (QWEN, True),
        (TEKKEN, True),
        (r" ?\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+|\s+", False),  # of "\n fox" and "  fox" the gap is no start
        (r"\p{L}+ \p{L}+|.", False),  # tokens of two words
        (r"(?<= )\p{L}+|.", False),  # looks back
    ],
)
def test_only_tokenizers_that_cut_between_words_are_cached(pattern, cuts):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    assert cuts_between_words(tokenizer, json.loads(tokenizer.to_str())) is cuts


def test_an_added_token_with_a_gap_forbids_cutting(local_model):
    tokenizer = Tokenizer.from_str(local_model.tokenizer._tokenizer.to_str())
    tokenizer.add_tokens(["New York"])
    assert not cuts_between_words(tokenizer, json.loads(tokenizer.to_str()))
