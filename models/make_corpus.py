"""Write the training text of the demonstration model as JSON lines.

Each line is {"messages": [{"role": ..., "content": ...}, ...]} for a chat, or {"text": ...} for plain text.
The same seed and count give the same bytes on every machine.

    python -m models.make_corpus --count 20 --seed 1
    python -m models.make_corpus --count 100000 --seed 1 --out corpus.jsonl
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import TextIO

from models.tinycorpus.dialogue import documents


def write(out: TextIO, *, seed: int, count: int) -> None:
    """Write `count` documents to `out`, one JSON object per line."""
    for document in documents(seed, count):
        record = {"text": document.text} if document.text else {"messages": list(document.messages)}
        out.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    """Parse the flags and write to a file or to standard output."""
    parser = argparse.ArgumentParser(description="Write the training text of the demonstration model.")
    parser.add_argument("--count", type=int, default=100_000, help="number of documents")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", help="file to write; standard output if absent")
    flags = parser.parse_args()
    if flags.out:
        with open(flags.out, "w", encoding="utf-8") as out:
            write(out, seed=flags.seed, count=flags.count)
    else:
        write(sys.stdout, seed=flags.seed, count=flags.count)


if __name__ == "__main__":
    main()
