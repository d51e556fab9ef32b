"""The engines of `bench/engine.py`, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORKER = Path(__file__).resolve().parent / "engine_worker.py"
ENGINES = ("tandem", "vllm", "vllm-compiled", "transformers")


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How the processes are started."""

    vllm_python: str  # interpreter of vLLM's environment
    device: str

    def start(self, engine: str, model: Path, kv_bytes: int, max_context: int) -> EngineProcess:
        """Start an engine with room for so many bytes of keys and values and tokens of a sequence; wait for it."""
        python = self.vllm_python if engine.startswith("vllm") else sys.executable
        sizes = (str(kv_bytes), str(max_context))
        return EngineProcess([python, str(WORKER), engine, str(model), self.device, *sizes], model)


class EngineProcess:
    """An engine in its own process; answers one run at a time."""

    def __init__(self, command: list[str], folder: Path) -> None:
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._command = " ".join(command)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # As the torch engine sets it for itself: where cores are shared, spinning threads ruin any engine's figure.
            env={"OMP_WAIT_POLICY": "passive"} | os.environ,
            cwd=folder,
        )
        try:
            self.load_s: float = self._answer()["ready"]
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Of the process, all of whose threads are the engine's."""
        return self._process.pid

    def run(self, prompts: list[list[int]], max_tokens: int) -> tuple[float, float, float]:
        """Seconds until all had their first token, until the first had its last, and the tokens in between."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"prompts": prompts, "max_tokens": max_tokens}) + "\n")
        self._process.stdin.flush()
        answer = self._answer()
        return answer["begin"], answer["end"], answer["tokens"]

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").splitlines()[-8:]
            raise RuntimeError("\n".join((f"{self._command} ended with {status}:", *last)))
        answer: dict[str, Any] = json.loads(line)
        return answer
