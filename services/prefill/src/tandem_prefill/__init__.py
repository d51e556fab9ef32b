"""Tandem's prefill role: reads prompts and ships their blocks to the decode workers that asked."""

from tandem_prefill.role import PrefillRole

__all__ = ["PrefillRole"]
