"""Recorded traffic: Mooncake (JSON lines) and Azure LLM inference (CSV), plain or gzipped."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from datetime import datetime
from itertools import islice
from pathlib import Path

from tandem_load.traffic import TrafficRequest

# Tokens per entry of Mooncake's `hash_ids`.
_MOONCAKE_BLOCK = 512


class TraceError(ValueError):
    """A trace cannot be read; the message says which line and what was expected."""


def load_trace(path: Path, max_requests: int | None = None) -> list[TrafficRequest]:
    """The trace's requests from time 0 on, in order of arrival; the format is told by the file's name.

    Mooncake: timestamp (ms), input_length, output_length, hash_ids, one per 512 tokens, equal ids for equal
    prefixes. Azure: TIMESTAMP, ContextTokens, GeneratedTokens; nothing is known to be shared. Raises TraceError.
    """
    name = path.name.removesuffix(".gz")
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open() as lines:
            rows = _mooncake(lines) if name.endswith(".jsonl") else _azure(lines)
            requests = list(islice(rows, max_requests))
    except OSError as error:
        raise TraceError(f"cannot read the trace {path}: {error.strerror or error}") from None
    if not requests:
        raise TraceError(f"the trace {path} has no requests")
    return requests


def _mooncake(lines: Iterator[str]) -> Iterator[TrafficRequest]:
    first_ms: float | None = None
    for index, line in enumerate(lines):
        try:
            row = json.loads(line)
            time_ms, segments = float(row["timestamp"]), tuple(int(i) for i in row["hash_ids"])
            lengths = int(row["input_length"]), int(row["output_length"])
        except (ValueError, KeyError, TypeError):
            raise TraceError(
                f"line {index + 1}: expected timestamp, input_length, output_length and hash_ids in JSON"
            ) from None
        first_ms = time_ms if first_ms is None else first_ms
        yield TrafficRequest(
            index=index,
            time_s=(time_ms - first_ms) / 1e3,
            num_prompt_tokens=max(1, lengths[0]),
            num_output_tokens=max(1, lengths[1]),
            segments=segments,
            segment_tokens=_MOONCAKE_BLOCK,
        )


def _azure(lines: Iterator[str]) -> Iterator[TrafficRequest]:
    first: datetime | None = None
    for index, row in enumerate(csv.DictReader(lines)):
        try:
            # Seven digits of a second; datetime takes six.
            time = datetime.fromisoformat(row["TIMESTAMP"][:26])
            lengths = int(row["ContextTokens"]), int(row["GeneratedTokens"])
        except (ValueError, KeyError, TypeError):
            raise TraceError(
                f"line {index + 2}: expected the columns TIMESTAMP, ContextTokens, GeneratedTokens"
            ) from None
        first = time if first is None else first
        yield TrafficRequest(
            index=index,
            time_s=(time - first).total_seconds(),
            num_prompt_tokens=max(1, lengths[0]),
            num_output_tokens=max(1, lengths[1]),
        )
