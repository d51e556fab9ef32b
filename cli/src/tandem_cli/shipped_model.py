"""The small model in the repository, which is what runs when none is named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tandem_common.config import ConfigError

_PLACE = Path("models") / "tandem-tiny"


def find_shipped_model(starts: Iterable[Path] | None = None) -> Path:
    """models/tandem-tiny in the first directory that has it, upwards from this file and from the working one."""
    for start in starts if starts is not None else (Path(__file__), Path.cwd()):
        for directory in (start, *start.parents):
            if (directory / _PLACE / "config.json").is_file():
                return directory / _PLACE
    raise ConfigError(
        "the shipped model (models/tandem-tiny) is not here: run this inside a checkout of Tandem, or pass "
        "--model with a directory or a Hugging Face hub id such as Qwen/Qwen3-0.6B"
    )
