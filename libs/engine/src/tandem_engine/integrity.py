"""How stateful structures report that they contradict themselves."""

from __future__ import annotations


class BrokenInvariant(Exception):
    """A structure contradicts itself: a defect of ours, after which nothing it says can be trusted."""


def require(condition: bool, what: str) -> None:
    """Raise BrokenInvariant, naming what should have held."""
    if not condition:
        raise BrokenInvariant(what)
