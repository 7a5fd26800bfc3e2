"""Weight files: plain state_dicts pass, pickled code is seen without being run."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.package.weights_check import weights_problems


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch attacked",))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_a_plain_state_dict_passes(tmp_path: Path, legacy: bool, dtype: torch.dtype) -> None:
    state = OrderedDict(a=torch.ones(3, 2).to(dtype), b=nn.Parameter(torch.zeros(2)), n=torch.tensor(1))
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    assert weights_problems(path) == []


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_torch_file_is_seen(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(1), "x": Attack()}, path, _use_new_zipfile_serialization=not legacy)
    assert "system" in weights_problems(path)[0]
    assert not Path("attacked").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_plain_pickle_is_seen(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"x": Attack()}, protocol))
    assert "system" in weights_problems(path)[0]


def test_a_whole_module_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)
    assert "torch.nn.modules" in weights_problems(path)[0]


def test_names_put_together_on_the_stack_are_not_believed(tmp_path: Path) -> None:
    # Pushes a harmless pair over the real one and takes it away again.
    def text(word: str) -> bytes:
        return pickle.SHORT_BINUNICODE + bytes([len(word)]) + word.encode()

    stream = (
        b"\x80\x04"
        + text("posix")
        + text("system")
        + text("collections")
        + text("OrderedDict")
        + pickle.POP
        + pickle.POP
        + pickle.STACK_GLOBAL
        + text("true")
        + pickle.TUPLE1
        + pickle.REDUCE
        + pickle.STOP
    )
    assert [opcode.name for opcode, _, _ in pickletools.genops(stream)].count("STACK_GLOBAL") == 1
    path = tmp_path / "w.pkl"
    path.write_bytes(stream)
    assert weights_problems(path) != []


def test_a_pickle_behind_a_harmless_one_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(1, 2) + pickle.dumps(Attack(), 2))
    assert "system" in weights_problems(path)[0]
    path.write_bytes(pickle.dumps(1, 2) + pickle.dumps(Attack(), 0))
    assert weights_problems(path) != []


def test_garbage_and_other_formats(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"not a pickle")
    assert "neither" in weights_problems(tmp_path / "w.pth")[0]
    (tmp_path / "w.h5").write_bytes(b"\x89HDF")
    assert weights_problems(tmp_path / "w.h5") == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_torchscript_is_let_through(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    trace: Any = torch.jit.trace  # untyped in torch
    torch.jit.save(trace(nn.Linear(2, 2), torch.zeros(1, 2)), path)
    assert weights_problems(path) == []
