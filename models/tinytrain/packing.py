"""Documents become rows of token ids with a weight for each, grouped by row length."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from models.tinycorpus.dialogue import Document

from .tokenizer import END_OF_TEXT, IM_END, IM_START, token_id

# Row lengths. Attention over long rows is what costs most, so a document goes where it just fits.
ROW_LENGTHS = (256, 1024, 4096)
# Share of documents that go to the longest rows whatever their length: teaches that a short chat may follow
# thousands of unrelated tokens.
LONG_SHARE = 0.01
# Rows that a document may still join, per length: with this many, little of a row is left empty.
OPEN_ROWS = 48
# What the user says is predicted too, but counts for little: it cannot be known in advance.
PROMPT_WEIGHT = 0.1


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One document: token ids and, for each, the weight of predicting it."""

    ids: list[int]
    weights: list[float]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Rows of one length; both arrays are (rows, length), and weight 0 marks padding."""

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.float32]


def encode(tokenizer: Tokenizer, documents: Iterable[Document]) -> Iterator[Tokens]:
    """Token ids exactly as the chat template and the tokenizer make them, then `<|endoftext|>`."""
    end, start, stop = (token_id(tokenizer, token) for token in (END_OF_TEXT, IM_START, IM_END))
    newline = tokenizer.encode("\n").ids
    for document in documents:
        ids: list[int] = []
        weights: list[float] = []
        if document.text:
            ids += tokenizer.encode(document.text).ids
            weights += [1.0] * len(ids)
        for message in document.messages:
            head = tokenizer.encode(message["role"] + "\n").ids
            body = [*tokenizer.encode(message["content"]).ids, stop]
            ids += [start, *head, *body, *newline]
            weights += [PROMPT_WEIGHT] * (1 + len(head))
            weights += [1.0 if message["role"] == "assistant" else PROMPT_WEIGHT] * len(body)
            weights += [PROMPT_WEIGHT] * len(newline)
        yield Tokens(ids=[*ids, end][: ROW_LENGTHS[-1]], weights=[*weights, 1.0][: ROW_LENGTHS[-1]])


def batches(documents: Iterable[Tokens], *, tokens_per_batch: int, seed: int) -> list[Batch]:
    """Pack all documents into rows, rows into batches of `tokens_per_batch`, and shuffle the batches.

    A document never spans two rows; the rest of a row is padding. Rows that do not fill a last batch
    are dropped.
    """
    rng = random.Random(seed)
    packers = {length: _Packer(length) for length in ROW_LENGTHS}
    for document in documents:
        length = next(length for length in ROW_LENGTHS if len(document.ids) <= length)
        packers[ROW_LENGTHS[-1] if rng.random() < LONG_SHARE else length].add(document)
    made = []
    for length, packer in packers.items():
        rows, size = packer.rows(), tokens_per_batch // length
        made += [_batch(rows[i : i + size], length) for i in range(0, len(rows) - size + 1, size)]
    rng.shuffle(made)
    return made


class _Packer:
    """Fills rows of one length: each document goes to the fullest open row that has room for it."""

    def __init__(self, length: int) -> None:
        self._length = length
        self._open: list[tuple[int, list[Tokens]]] = []  # (tokens used, documents)
        self._full: list[list[Tokens]] = []

    def add(self, document: Tokens) -> None:
        """Place one document, which is at most as long as a row."""
        size = len(document.ids)
        fitting = [i for i, (used, _) in enumerate(self._open) if used + size <= self._length]
        if fitting:
            best = max(fitting, key=lambda i: self._open[i][0])
            used, row = self._open[best]
            row.append(document)
            self._open[best] = (used + size, row)
            return
        if len(self._open) == OPEN_ROWS:
            fullest = max(range(OPEN_ROWS), key=lambda i: self._open[i][0])
            self._full.append(self._open.pop(fullest)[1])
        self._open.append((size, [document]))

    def rows(self) -> list[list[Tokens]]:
        """All rows, the open ones last."""
        return [*self._full, *(row for _, row in self._open)]


def _batch(rows: list[list[Tokens]], length: int) -> Batch:
    ids = np.zeros((len(rows), length), dtype=np.int64)
    weights = np.zeros((len(rows), length), dtype=np.float32)
    for index, row in enumerate(rows):
        flat = [token for document in row for token in document.ids]
        ids[index, : len(flat)] = flat
        weights[index, : len(flat)] = [weight for document in row for weight in document.weights]
    return Batch(ids=ids, weights=weights)
