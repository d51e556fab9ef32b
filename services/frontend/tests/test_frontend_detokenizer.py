"""Incremental decoding against decoding the whole, for both families of tokenizers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tandem_common.config import ConfigError
from tandem_frontend.detokenizer import Detokenizer
from tandem_frontend.token_bytes import TokenBytes
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = [
    "the quick brown fox jumps over the lazy dog, naïve café, 日本語, 🦊🦉 family 👨‍👩‍👧",
    "\n\t  spaces   here",
]


def byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXT, trainer)
    tokenizer.add_tokens([AddedToken("<tool call>", special=False)])
    return tokenizer


def sentence_piece() -> Tokenizer:
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", "▁the", "▁fox", "e", "日", "▁▁", "é"]
    tokenizer = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>", byte_fallback=True)
    )
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return tokenizer


BYTE_LEVEL = byte_level()
BYTE_LEVEL_TABLE = TokenBytes.of(BYTE_LEVEL)
SENTENCE_PIECE = sentence_piece()
SENTENCE_PIECE_TABLE = TokenBytes.of(SENTENCE_PIECE)

# Ids past the vocabulary too: a model's output may be wider than its tokenizer.
ids = st.lists(st.integers(0, BYTE_LEVEL.get_vocab_size() + 3), max_size=40)
# Without byte tokens above ASCII, which the library decodes run by run.
sentence_piece_ids = st.lists(
    st.one_of(st.integers(0, 129), st.integers(258, SENTENCE_PIECE.get_vocab_size() - 1)), max_size=40
)


def decode(table: TokenBytes, token_ids: list[int], cuts: list[int], **how: bool) -> str:
    detokenizer = Detokenizer(table, **how)
    pieces = []
    start = 0
    for cut in [*sorted(c % (len(token_ids) + 1) for c in cuts), len(token_ids)]:
        pieces.append(detokenizer.add(token_ids[start:cut]))
        start = cut
    return "".join(pieces) + detokenizer.finish()


@given(ids, st.lists(st.integers(0, 40), max_size=40))
def test_byte_level_pieces_equal_the_whole(token_ids, cuts):
    expected = BYTE_LEVEL.decode(token_ids, skip_special_tokens=True)
    assert decode(BYTE_LEVEL_TABLE, token_ids, cuts) == expected


@given(st.text(max_size=30), st.lists(st.integers(0, 40), max_size=40))
def test_any_text_survives_any_split(text, cuts):
    token_ids = BYTE_LEVEL.encode(text, add_special_tokens=False).ids
    expected = BYTE_LEVEL.decode(token_ids, skip_special_tokens=True)
    assert decode(BYTE_LEVEL_TABLE, token_ids, cuts) == expected


@given(sentence_piece_ids, st.lists(st.integers(0, 40), max_size=40))
def test_sentence_piece_pieces_equal_the_whole(token_ids, cuts):
    expected = SENTENCE_PIECE.decode(token_ids, skip_special_tokens=True)
    assert decode(SENTENCE_PIECE_TABLE, token_ids, cuts) == expected


# Tokens of any kind between characters of one to four bytes, a token for each byte.
mixed_ids = st.lists(
    st.one_of(
        st.sampled_from([0, 1, *range(258, SENTENCE_PIECE.get_vocab_size())]).map(
            lambda token_id: [token_id]
        ),
        st.characters(codec="utf-8").map(lambda character: [2 + byte for byte in character.encode()]),
    ),
    max_size=20,
).map(lambda groups: [token_id for group in groups for token_id in group])


@given(mixed_ids, st.lists(st.integers(0, 80), max_size=60))
def test_characters_of_byte_tokens_between_others_survive_any_split(token_ids, cuts):
    expected = SENTENCE_PIECE.decode(token_ids, skip_special_tokens=True)
    assert decode(SENTENCE_PIECE_TABLE, token_ids, cuts) == expected


@given(st.text(min_size=1, max_size=10))
def test_sentence_piece_byte_tokens_become_characters_again(text):
    token_ids = [2 + byte for byte in text.encode()]
    detokenizer = Detokenizer(SENTENCE_PIECE_TABLE)
    pieces = [detokenizer.add([token_id]) for token_id in token_ids] + [detokenizer.finish()]
    assert "".join(pieces) == text.removeprefix(" ") == SENTENCE_PIECE.decode(token_ids)


def test_a_character_is_held_back_until_it_is_complete():
    token_ids = BYTE_LEVEL.encode("🐙", add_special_tokens=False).ids
    assert len(token_ids) > 1
    detokenizer = Detokenizer(BYTE_LEVEL_TABLE)
    assert [detokenizer.add([token_id]) for token_id in token_ids][:-1] == [""] * (len(token_ids) - 1)
    assert Detokenizer(BYTE_LEVEL_TABLE).add(token_ids) == "🐙"


def test_bytes_that_never_become_a_character_are_replaced_at_the_end():
    first = BYTE_LEVEL.encode("🐙", add_special_tokens=False).ids[:1]
    detokenizer = Detokenizer(BYTE_LEVEL_TABLE)
    assert detokenizer.add(first) == ""
    assert detokenizer.finish() == "\ufffd"


def test_a_text_that_continues_a_prompt_keeps_its_leading_space():
    fox = [SENTENCE_PIECE.token_to_id("▁fox")]
    assert decode(SENTENCE_PIECE_TABLE, fox, []) == "fox"
    assert decode(SENTENCE_PIECE_TABLE, fox, [], continues_text=True) == " fox"


def test_special_tokens_are_shown_only_among_log_probabilities():
    assert decode(BYTE_LEVEL_TABLE, [0], []) == ""
    assert BYTE_LEVEL_TABLE.shown_text(0) == "<|end|>"
    assert BYTE_LEVEL_TABLE.shown_text(10_000) == ""


def test_the_shipped_tokenizer_is_understood(local_model):
    tokenizer = local_model.tokenizer._tokenizer
    token_ids = tokenizer.encode("Ünïcödé 🦊 and 日本語", add_special_tokens=False).ids
    assert decode(local_model.tokenizer.token_bytes, token_ids, [1, 3, 4]) == "Ünïcödé 🦊 and 日本語"


def test_a_tokenizer_of_another_family_is_refused():
    tokenizer = Tokenizer(models.WordPiece({"a": 0}, unk_token="a"))
    tokenizer.decoder = decoders.WordPiece()
    with pytest.raises(ConfigError, match="WordPiece"):
        TokenBytes.of(tokenizer)
