"""How many workers do what."""

from __future__ import annotations

from dataclasses import dataclass

from tandem.v1 import planner_pb2


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """Workers of one model by role. Reads as "2 prefill + 2 decode"."""

    num_prefill: int = 0
    num_decode: int = 0
    num_both: int = 0

    @property
    def total(self) -> int:
        """All workers."""
        return self.num_prefill + self.num_decode + self.num_both

    def to_proto(self) -> planner_pb2.Split:
        """The message."""
        return planner_pb2.Split(
            num_prefill=self.num_prefill, num_decode=self.num_decode, num_both=self.num_both
        )

    def __str__(self) -> str:
        parts = []
        if self.num_prefill or self.num_decode or not self.num_both:
            parts += [f"{self.num_prefill} prefill", f"{self.num_decode} decode"]
        if self.num_both:
            parts.append(f"{self.num_both} both")
        return " + ".join(parts)
