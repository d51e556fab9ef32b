"""A model's weights in safetensors files: one file, or shards with an index.

Files are memory-mapped and each tensor is copied once, straight to where it will live. Only safetensors is
read: it holds nothing but numbers. Everything that is wrong with the files is a ModelError that names the
tensor or file and the way to mend it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tandem_engine.api import ModelError

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
# Of safetensors' names for dtypes, those that convert to the dtype we compute in without a scale of their own.
_PLAIN_DTYPES = ("F64", "F32", "F16", "BF16")
_OTHER_FORMATS = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".gguf", ".h5", ".msgpack", ".onnx")
# How the small file begins that Git checks out where its LFS extension is not installed.
_LFS_POINTER = b"version https://git-lfs"
# Buffers that old checkpoints carry and that are computed from config.json.
_COMPUTED_SUFFIXES = (".rotary_emb.inv_freq", ".masked_bias")


class Weights:
    """The tensors of a model directory; a context manager that unmaps the files in the end."""

    def __init__(self, path: Path, *, dtype: torch.dtype, device: str) -> None:
        """Map all files and read their headers; tensors come out in `dtype` on `device`."""
        self.dtype = dtype
        self.device = device
        self._stack = ExitStack()
        self._file_of: dict[str, Any] = {}  # tensor name to the open file that holds it
        self._unread: set[str] = set()
        try:
            for name, file in _shards(path).items():
                self._open(path / name, file)
        except BaseException:
            self._stack.close()
            raise
        self._unread.update(name for name in self._file_of if not name.endswith(_COMPUTED_SUFFIXES))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __contains__(self, name: str) -> bool:
        return name in self._file_of

    def num_bytes(self) -> int:
        """Memory that all tensors take in the dtype asked for."""
        elements: int = sum(math.prod(self._slice(name).get_shape()) for name in self._unread)
        return elements * self.dtype.itemsize

    def read(self, name: str, *shape: int) -> Tensor:
        """One tensor of exactly this shape."""
        return self.stack([name], [shape[0]], *shape[1:])

    def stack(self, names: Sequence[str], rows: Sequence[int], *rest: int) -> Tensor:
        """Several tensors, each (its rows, *rest), one after another along the first dimension."""
        stacked = self._room((sum(rows), *rest), names[0])
        for name, part in zip(names, torch.split(stacked, list(rows)), strict=True):
            self._check(name, tuple(part.shape))
            part.copy_(self._file_of[name].get_tensor(name))
            self._unread.discard(name)
        return stacked

    def ignore(self, name: str) -> None:
        """Say that a tensor may be there and is not needed."""
        self._unread.discard(name)

    def check_all_read(self) -> None:
        """ModelError when the files hold tensors that nothing used: the model is not what config.json says."""
        if self._unread:
            named = ", ".join(sorted(self._unread)[:3]) + (", ..." if len(self._unread) > 3 else "")
            raise ModelError(
                f"the model's weights hold {len(self._unread)} tensors that its config.json has no place for "
                f"({named}); without them it would answer wrongly. Check that config.json belongs to these weights"
            )

    def _room(self, shape: tuple[int, ...], name: str) -> Tensor:
        try:
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        except RuntimeError:  # torch's own for memory that the system does not give
            needed = math.prod(shape) * self.dtype.itemsize >> 20
            raise ModelError(
                f"not enough memory on {self.device}: {name} needs {needed} MiB more. Choose dtype bfloat16, use a "
                "smaller model or free memory"
            ) from None

    def _open(self, path: Path, expected: set[str] | None) -> None:
        try:
            file = self._stack.enter_context(safe_open(path, framework="pt"))
        except FileNotFoundError:
            raise ModelError(
                f"the model's weights file {path.name} is missing; download the model again or copy that file"
            ) from None
        except PermissionError:
            raise ModelError(
                f"the model's weights file {path.name} may not be read; give this user the right to"
            ) from None
        except (SafetensorError, OSError) as error:
            if _is_lfs_pointer(path):
                raise ModelError(
                    f"the model's weights file {path.name} is a pointer of Git LFS, not the file itself; run "
                    "git lfs pull, or download the model with the hub's own client"
                ) from None
            raise ModelError(
                f"the model's weights file {path.name} is incomplete or damaged ({error}); download it again"
            ) from None
        held = set(file.keys())
        if lacking := (expected or set()) - held:
            raise ModelError(
                f"{path.name} lacks {len(lacking)} tensors that {INDEX_FILE} places in it, such as "
                f"{min(lacking)}; download the model again"
            )
        self._file_of.update(dict.fromkeys(expected if expected is not None else held, file))

    def _slice(self, name: str) -> Any:
        return self._file_of[name].get_slice(name)

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._file_of:
            raise ModelError(
                f"the model's weights lack the tensor {name}; check that config.json belongs to these weights, "
                "or download the model again"
            )
        header = self._slice(name)
        if (dtype := header.get_dtype()) not in _PLAIN_DTYPES:
            raise ModelError(
                f"the tensor {name} has dtype {dtype}; the torch engine reads {', '.join(_PLAIN_DTYPES)}. Use the "
                "model's unquantised version, or the sglang or vllm engine"
            )
        if (found := tuple(header.get_shape())) != shape:
            raise ModelError(
                f"the tensor {name} has shape {found}, but config.json asks for {shape}; check that config.json "
                "belongs to these weights"
            )


def _is_lfs_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_LFS_POINTER)) == _LFS_POINTER


def _shards(path: Path) -> dict[str, set[str] | None]:
    """File names and the tensors to be found in each; None when the file itself decides."""
    if (path / SINGLE_FILE).is_file():
        return {SINGLE_FILE: None}
    if not (path / INDEX_FILE).is_file():
        others = sorted(file.name for file in path.iterdir() if file.suffix in _OTHER_FORMATS)
        raise ModelError(
            f"the model has neither {SINGLE_FILE} nor {INDEX_FILE}"
            + (f", but {others[0]}, which is not read" if others else "")
            + "; only safetensors weights are, since other formats may run code. Convert them with save_pretrained of "
            "transformers, or download the safetensors version"
        )
    try:
        weight_map = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))["weight_map"]
        shards: dict[str, set[str] | None] = {}
        for name, file in weight_map.items():
            if Path(file).name != file:
                raise ValueError(f"{file} is not a plain file name")
            tensors = shards.setdefault(file, set())
            assert tensors is not None
            tensors.add(name)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{INDEX_FILE} of the model is damaged ({error}); download it again") from None
    return shards
