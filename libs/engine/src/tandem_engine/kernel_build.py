"""Compiling the kernels in C once per machine, at first use.

The compiled library lies in the user's cache directory under a name that depends on the sources, the compiler and
the processor, so that it can never be the wrong one.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from hashlib import blake2b
from pathlib import Path

_FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC")
_COMPILE_TIMEOUT_S = 60.0


def compiled_library(folder: Path, definitions: tuple[str, ...] = ()) -> Path:
    """The library made of a folder's sources with these macros, from the cache or freshly.

    OSError or SubprocessError when it cannot be.
    """
    directory = _cache_directory()
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None or sys.platform != "linux":
        raise OSError("no C compiler")
    version = subprocess.run(
        [compiler, "--version"], capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S
    ).stdout
    sources = sorted(folder.glob("*.c"))
    texts = [path.read_bytes() for path in (*sources, *sorted(folder.glob("*.h")))]
    parts = (*texts, version, _processor(), " ".join((*_FLAGS, *definitions)).encode())
    library = directory / f"{blake2b(b'|'.join(parts), digest_size=16).hexdigest()}.so"
    if not library.exists():
        # Several workers may start at once: each compiles for itself, and the last one's file stays.
        with tempfile.TemporaryDirectory(dir=directory) as place:
            made = Path(place) / "kernels.so"
            command = [
                compiler,
                *_FLAGS,
                *definitions,
                "-Wno-psabi",
                "-shared",
                "-o",
                str(made),
                *map(str, sources),
            ]
            subprocess.run(command, capture_output=True, check=True, timeout=_COMPILE_TIMEOUT_S)
            made.replace(library)
    return library


def _cache_directory() -> Path:
    """A directory that nobody else can write to; OSError when there is none: what lies in it is executed."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    directory = Path(base) / "tandem" / "kernels"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise OSError("the kernel cache directory is writable by others")
    return directory


def _processor() -> bytes:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_bytes().splitlines()
    except OSError:
        return platform.machine().encode()
    return b"".join(
        sorted({line for line in lines if line.startswith((b"flags", b"Features", b"model name"))})
    )
