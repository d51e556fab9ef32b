"""Typed reading of what a config.json holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from tandem_engine.api import ModelError

T = TypeVar("T", int, float, bool, str)


class ConfigFields:
    """A JSON object; a null counts as absent, and a value of another type than expected is a ModelError."""

    def __init__(self, raw: Mapping[str, object]) -> None:
        self._raw = raw

    def get(self, name: str, default: T) -> T:
        """The value, or the default; of the default's type, but that whole numbers are floats too."""
        value = self._raw.get(name)
        if value is None:
            return default
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise ModelError(f"{name} in config.json must be of type {type(default).__name__}, got {value!r}")
        return value

    def has(self, name: str) -> bool:
        """Whether the key is there at all, if only as null."""
        return name in self._raw

    def need(self, name: str) -> int:
        """A positive integer without which there is no model."""
        value = self.get(name, 0)
        if value < 1:
            raise ModelError(f"config.json of the model needs a positive {name}; download it again")
        return value

    def strings(self, name: str) -> list[str]:
        """A list of names; empty when absent."""
        value = self._raw.get(name)
        return [str(item) for item in value] if isinstance(value, list) else []

    def numbers(self, name: str) -> tuple[float, ...]:
        """A list of numbers; empty when absent."""
        value = self._raw.get(name)
        if value is None:
            return ()
        if not isinstance(value, list) or any(type(item) not in (int, float) for item in value):
            raise ModelError(f"{name} in config.json must be a list of numbers")
        return tuple(float(item) for item in value)

    def section(self, name: str) -> Mapping[str, object]:
        """An object inside this one; empty when absent."""
        value = self._raw.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise ModelError(f"{name} in config.json must be an object, got {value!r}")
        return value
