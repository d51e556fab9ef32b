"""Making the engine that a configuration asks for, importing only what that one needs."""

from __future__ import annotations

from tandem_common.config import ConfigError

from tandem_engine.api import Engine
from tandem_engine.config import EngineConfig
from tandem_engine.local_engine import LocalEngine
from tandem_engine.loop_engine import LoopEngine
from tandem_engine.simulated import SimulatedRunner


def create_engine(config: EngineConfig) -> Engine:
    """An engine that is not started yet; ConfigError when its package is not installed."""
    if config.engine == "simulated":
        return LoopEngine(config, SimulatedRunner(config))
    try:
        from tandem_engine.torch_engine import TorchRunner
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"engine = 'torch' needs the package {error.name!r}: pip install 'tandem-engine[torch]', "
            "or set engine = 'simulated'"
        ) from None
    return LocalEngine(config, TorchRunner(config))
