"""The simulated engine's runner: real blocks and scheduling, made-up tokens, step times from a formula."""

from tandem_engine.simulated.runner import SimulatedRunner

__all__ = ["SimulatedRunner"]
