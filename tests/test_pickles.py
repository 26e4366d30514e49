"""Numbers out of pickles: of every kind, and never by doing what a pickle asks for."""

from __future__ import annotations

import builtins
import os
import pickle
import pickletools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from saferclip import io, pickles

NUMBERS = np.arange(12, dtype=np.float32).reshape(2, 6) / 7


class Reduced:
    """Pickled as a call of something else."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.call = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> Any:
        return self.call


class SetState:
    """Reading it in the usual way runs code of its own."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["path"].touch()


def numbers() -> dict[str, Any]:
    return {
        "array": NUMBERS,
        "transposed": np.asfortranarray(NUMBERS),
        "big-endian doubles": NUMBERS.astype(">f8"),
        "halves": NUMBERS.astype(np.float16),
        "tensor": torch.tensor(NUMBERS),
        "view of a tensor": torch.cat([torch.zeros(1, 6), torch.tensor(NUMBERS)])[1:],
        "parameter": torch.nn.Parameter(torch.tensor(NUMBERS)),
        "lists": NUMBERS.tolist(),
        "list of arrays": list(NUMBERS),
    }


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("kind", numbers())
def test_arrays_and_tensors_of_every_protocol_are_read(kind: str, protocol: int, tmp_path: Path) -> None:
    value = numbers()[kind]
    path = tmp_path / "prompts.p"
    path.write_bytes(pickle.dumps(value, protocol))
    precision = 1e-3 if kind == "halves" else 1e-7
    np.testing.assert_allclose(pickles.read_numbers(path), NUMBERS, atol=precision)


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_are_read(zipped: bool, tmp_path: Path) -> None:
    torch.save(torch.tensor(NUMBERS), tmp_path / "prompts.p", _use_new_zipfile_serialization=zipped)
    np.testing.assert_array_equal(pickles.read_numbers(tmp_path / "prompts.p"), NUMBERS)


def test_both_names_of_numpys_modules_are_known(tmp_path: Path) -> None:
    """numpy 2 writes numpy._core, numpy 1 numpy.core."""
    content = pickle.dumps(NUMBERS, 2)
    assert b"numpy._core.multiarray" in content
    (tmp_path / "one.p").write_bytes(content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    np.testing.assert_array_equal(pickles.read_numbers(tmp_path / "one.p"), NUMBERS)


def attacks(mark: Path) -> dict[str, Any]:
    """Pickles that would leave ``mark`` behind if they were read in the usual way."""
    command = f"touch {mark}"
    script = f"open({str(mark)!r}, 'w')"
    return {
        "os.system": Reduced(os.system, command),
        "eval": Reduced(builtins.eval, script),
        "exec within a list of numbers": [1.0, Reduced(builtins.exec, script)],
        "a call of the result of a call": Reduced(getattr, Reduced(__import__, "os"), "system"),
        "a call as an argument of an allowed one": Reduced(np.dtype, Reduced(os.system, command)),
        "a call as the state of an array": Reduced(
            np.core.multiarray._reconstruct if hasattr(np, "core") else np._core.multiarray._reconstruct,
            *(np.ndarray, (0,), b"b"),
            state=(1, (2,), np.dtype("f4"), False, Reduced(os.system, command)),
        ),
        "__setstate__": SetState(mark),
        "a pickle in a storage": Reduced(torch.storage._load_from_bytes, pickle.dumps(Reduced(os.system, command))),
    }


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("attack", attacks(Path("mark")))
def test_nothing_is_executed(attack: str, protocol: int, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "prompts.p"
    path.write_bytes(pickle.dumps(attacks(mark)[attack], protocol))
    with pytest.raises(io.DataError, match=r"prompts\.p: cannot be read as an array of numbers"):
        pickles.read_numbers(path)
    assert not mark.exists()


def test_a_pickle_in_the_storage_of_a_tensor_is_not_executed(tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "prompts.p"
    inner = pickle.dumps(Reduced(os.system, f"touch {mark}"))
    storage = Reduced(torch.storage._load_from_bytes, inner)
    path.write_bytes(pickle.dumps(Reduced(torch._utils._rebuild_tensor_v2, storage, 0, (2,), (1,), False, {})))
    with pytest.raises(io.DataError, match="names more than tensors"):
        pickles.read_numbers(path)
    assert not mark.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_torch_cannot_execute_either(zipped: bool, tmp_path: Path) -> None:
    mark, path = tmp_path / "mark", tmp_path / "prompts.p"
    torch.save(Reduced(os.system, f"touch {mark}"), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(io.DataError, match=r"prompts\.p.*names more than tensors") as refusal:
        pickles.read_numbers(path)
    assert "weights_only" not in str(refusal.value)
    assert not mark.exists()


def test_the_attacks_would_work_on_a_plain_reader(tmp_path: Path) -> None:
    """Else the tests above would prove nothing."""
    mark = tmp_path / "mark"
    pickle.loads(pickle.dumps(Reduced(os.system, f"touch {mark}")))
    assert mark.exists()


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: b"", id="empty"),
        pytest.param(lambda: b"<!DOCTYPE html><html></html>", id="a web page"),
        pytest.param(lambda: pickle.dumps(NUMBERS)[:-20], id="cut off"),
        pytest.param(lambda: pickle.dumps({"prompts": NUMBERS}), id="a mapping"),
        pytest.param(lambda: pickle.dumps("two prompts"), id="text"),
        pytest.param(lambda: pickle.dumps(np.array([{}, {}])), id="an array of objects"),
        pytest.param(lambda: pickle.dumps(np.dtype), id="a class"),
        # Opcode BINPERSID: asks the reader for an object of its own.
        pytest.param(lambda: b"\x80\x02U\x01aQ.", id="a persistent id"),
        # Sets attributes of the class itself, were it shared.
        pytest.param(lambda: b"\x80\x02cnumpy\ndtype\n}U\x04nameU\x01xsb.", id="state of a class"),
        pytest.param(lambda: b"\x80\x02\x82\x01.", id="an extension code"),
        pytest.param(lambda: b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".", id="an endless frame"),
    ],
)
def test_what_is_no_array_is_refused(build: Callable[[], bytes], tmp_path: Path) -> None:
    (tmp_path / "prompts.p").write_bytes(build())
    with pytest.raises(io.DataError, match=r"prompts\.p"):
        pickles.read_numbers(tmp_path / "prompts.p")


def test_reading_leaves_the_allowed_names_alone(tmp_path: Path) -> None:
    path = tmp_path / "prompts.p"
    path.write_bytes(pickle.dumps(NUMBERS))
    named = {argument for opcode, argument, _ in pickletools.genops(path.read_bytes()) if "GLOBAL" in opcode.name}
    assert named  # the file does ask for calls
    pickles.read_numbers(path)
    assert not hasattr(pickles.Recorded, "state")
    assert not hasattr(pickles.Recorded, "name")
