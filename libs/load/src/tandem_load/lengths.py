"""Lengths in tokens, fixed or drawn."""

from __future__ import annotations

import math
import random
import re

import msgspec

_FORM = re.compile(r"(\d+)(?:([-~])(\d+))?")
# Standard deviations from the median to the 99th percentile of a normal distribution.
_Z99 = 2.3263


class Lengths(msgspec.Struct, frozen=True, kw_only=True):
    """`low` alone: that; `spread` "-": evenly from low to high; "~": log-normal with median low and p99 high."""

    low: int
    high: int
    spread: str = "-"

    @classmethod
    def parse(cls, text: str) -> Lengths:
        """What 512, 128-1024 or 512~2048 says. Raises ValueError."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(
                f"{text!r}: expected a length as in 512, 128-1024 (evenly) or 512~2048 (median~p99)"
            )
        low, high = int(match[1]), int(match[3] or match[1])
        if low < 1 or high < low:
            raise ValueError(f"{text!r}: lengths start at 1, and the second is not below the first")
        return cls(low=low, high=high, spread=match[2] or "-")

    def draw(self, random: random.Random) -> int:
        """One length; log-normal ones end at four times the 99th percentile."""
        if self.low == self.high:
            return self.low
        if self.spread == "-":
            return random.randint(self.low, self.high)
        sigma = math.log(self.high / self.low) / _Z99
        return min(4 * self.high, max(1, round(self.low * math.exp(random.gauss(0.0, sigma)))))

    def __str__(self) -> str:
        """As it is written."""
        return str(self.low) if self.low == self.high else f"{self.low}{self.spread}{self.high}"
