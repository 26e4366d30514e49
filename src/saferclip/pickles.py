"""Numbers out of pickles, without executing anything: some published weights exist in no other form.

A pickle is a program that may call any function. Here every function and class that one names is replaced by a stand-in
that remembers what it was called with; arrays are then built from what was remembered.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from saferclip import io

# All that a pickle of numbers may name. Of these, too, nothing is called.
NAMES = frozenset(
    {
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.core.multiarray._reconstruct",  # up to numpy 1
        "numpy._core.multiarray._reconstruct",  # from numpy 2 on
        "numpy.core.numeric._frombuffer",  # the same two, in pickle protocol 5
        "numpy._core.numeric._frombuffer",
        "_codecs.encode",  # how protocol 2 writes bytes
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_parameter",
        "torch.storage._load_from_bytes",
        "collections.OrderedDict",  # a tensor's hooks, always empty
    }
)

# The first object in a file of torch.save's old format.
TORCH_MAGIC = 0x1950A86A20F9469CFC6C


class Recorded:
    """Stands for what a pickle wants called: remembers name, arguments and state, and calls nothing."""

    name: ClassVar[str]
    arguments: tuple[Any, ...]
    state: Any

    def __new__(cls, *arguments: Any) -> Recorded:
        record = super().__new__(cls)
        record.arguments, record.state = arguments, None
        return record

    def __setstate__(self, state: Any) -> None:
        self.state = state


class InertUnpickler(pickle.Unpickler):
    """Reads a pickle's structure, with a Recorded in the place of every call."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in NAMES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        # A fresh class each time, so that a file can do nothing lasting even to the stand-in.
        return type("Recorded", (Recorded,), {"name": f"{module}.{name}"})


def read_numbers(path: Path) -> np.ndarray:
    """The one array in a file, in fp32: a pickle of an array, a tensor or nested lists, or torch.save's.

    Raises DataError, having executed nothing, if the file asks for anything that numbers do not need.
    """
    try:
        content = path.read_bytes()
        value = _torch(content) if zipfile.is_zipfile(BytesIO(content)) else _structure(content)
        return np.array(_numbers(value), dtype=np.float32)
    # Whatever a damaged or malicious file makes the reader stumble over.
    except Exception as error:
        raise io.DataError(
            f"{path}: cannot be read as an array of numbers: {error} ({type(error).__name__}); nothing in it was "
            "executed. If you expected numbers, fetch the file anew"
        ) from error


def _structure(content: bytes) -> Any:
    """What a pickle holds, with a Recorded in the place of every call."""
    value = InertUnpickler(BytesIO(content), encoding="latin1").load()
    return _torch(content) if type(value) is int and value == TORCH_MAGIC else value


def _torch(content: bytes) -> Any:
    """What torch.save wrote, by torch's own restricted reader."""
    try:
        return torch.load(BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # Torch's own message advises to switch the restriction off.
        raise pickle.UnpicklingError("it names more than tensors") from None


def _numbers(value: Any) -> Any:
    """Arrays in the place of records and tensors; lists of numbers stay lists."""
    if isinstance(value, Recorded):
        return _rebuilt(value)
    if isinstance(value, Tensor):
        return value.detach().float().numpy()
    return [_numbers(item) for item in value] if isinstance(value, list | tuple) else value


def _rebuilt(record: Recorded) -> np.ndarray:
    """The array that a record's call would have built."""
    match record.name.rpartition(".")[2]:
        case "_reconstruct":
            _, shape, kind, fortran, data = record.state
            return _array(_bytes(data), kind, shape, "F" if fortran else "C")
        case "_frombuffer":
            return _array(*record.arguments)
        case "_rebuild_tensor_v2":
            return _tensor(*record.arguments[:4])
        case "_rebuild_parameter":
            return _rebuilt(record.arguments[0])
        case _:
            raise ValueError(f"{record.name} alone is no array")


def _array(data: bytes, kind: Recorded, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """What numpy stored: raw bytes, with type, shape and order ("C" or "F")."""
    code, byte_order = str(kind.arguments[0]), str(kind.state[1])
    if code[:1] not in ("f", "i", "u"):
        raise ValueError(f"an array of type '{code}', not of numbers")
    return np.frombuffer(data, np.dtype(byte_order.replace("|", "=") + code)).reshape(shape, order=order)


def _bytes(value: Any) -> bytes:
    """Raw bytes, in whichever way the pickle's protocol writes them."""
    if isinstance(value, Recorded) and value.name == "_codecs.encode":
        value = value.arguments[0]
    return value.encode("latin1") if isinstance(value, str) else bytes(value)


def _tensor(storage: Recorded, offset: int, size: Sequence[int], stride: Sequence[int]) -> np.ndarray:
    """What a plain pickle of a torch tensor stored: a view of a storage, which is in torch.save's format."""
    data = _torch(_bytes(storage.arguments[0]))
    return torch.empty(0, dtype=data.dtype).set_(data, offset, size, stride).detach().float().numpy()
