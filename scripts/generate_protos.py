"""Regenerate the stubs in libs/proto from protos/; with --check, only say whether they differ.

Run with the development environment's Python: `make protos`.
"""

from __future__ import annotations

import argparse
import filecmp
import sys
import sysconfig
import tempfile
from importlib.resources import files
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
# The plugins of this environment, whether or not it is on PATH.
SCRIPTS = Path(sysconfig.get_path("scripts"))
STUBS = ROOT / "libs" / "proto" / "src"


def generate(target: Path) -> None:
    """Write messages, services and their type stubs for every .proto below `target`."""
    from grpc_tools import protoc

    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = files("grpc_tools") / "_proto"
    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={well_known}",
            f"--python_out={target}",
            f"--grpc_python_out={target}",
            *(f"--plugin={name}={SCRIPTS / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")),
            f"--mypy_out=quiet:{target}",
            f"--mypy_grpc_out=quiet:{target}",
            *sources,
        ]
    )
    if status != 0:
        raise SystemExit(f"protoc failed with status {status}")


def differing(target: Path) -> list[str]:
    """Names of generated files that are missing from libs/proto, changed, or left over there."""
    fresh = {path.relative_to(target) for path in target.rglob("*.py*")}
    kept = {path.relative_to(STUBS) for path in STUBS.rglob("*_pb2*.py*") if path.suffix != ".pyc"}
    changed = {name for name in fresh & kept if not filecmp.cmp(target / name, STUBS / name, shallow=False)}
    return sorted(str(name) for name in changed | (fresh ^ kept))


def main() -> None:
    """Generate in place, or compare a fresh generation with what is checked in."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail when the stubs are out of date")
    if not parser.parse_args().check:
        generate(STUBS)
        return
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        names = differing(Path(scratch))
    if names:
        sys.exit("stubs differ from protos/ (run `make protos`): " + ", ".join(names))


if __name__ == "__main__":
    main()
