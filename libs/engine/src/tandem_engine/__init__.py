"""Tandem's engines. The seam is in `api`; importing this package imports no torch."""

from tandem_engine.api import (
    BlockExchange,
    Engine,
    EngineDied,
    EngineInfo,
    EngineSnapshot,
    FirstToken,
    ModelError,
    PrefillMode,
    PrefillProgress,
    RequestFailure,
    RequestSnapshot,
    Reservation,
    StepCost,
    StepOutput,
    TokenLogprobs,
    TokenOutput,
)
from tandem_engine.config import EngineConfig
from tandem_engine.factory import create_engine

__all__ = [
    "BlockExchange",
    "Engine",
    "EngineConfig",
    "EngineDied",
    "EngineInfo",
    "EngineSnapshot",
    "FirstToken",
    "ModelError",
    "PrefillMode",
    "PrefillProgress",
    "RequestFailure",
    "RequestSnapshot",
    "Reservation",
    "StepCost",
    "StepOutput",
    "TokenLogprobs",
    "TokenOutput",
    "create_engine",
]
