"""Counter-based random numbers: a draw is a function of (seed, position), whatever came before or beside it."""

from __future__ import annotations

_MASK = (1 << 64) - 1


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1), a multiple of 2**-48, from a 64-bit seed and a position in the sequence.

    Two rounds of the finaliser of SplitMix64 (Steele, Lea and Flood 2014), in integers, so that every machine
    gets the same. 48 bits leave room for the product with a float64 sum to stay below that sum.
    """
    return (_mix(_mix(seed) ^ position) >> 16) * 2.0**-48


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
