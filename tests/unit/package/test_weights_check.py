"""Weight files: plain state_dicts pass, pickled code is seen without being run."""

from __future__ import annotations

import io
import os
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tasks.package.weights_check import code_archives, weights_problems, weights_rows


class Attack:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch attacked",))


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_a_plain_state_dict_passes(tmp_path: Path, legacy: bool, dtype: torch.dtype) -> None:
    state = OrderedDict(a=torch.ones(3, 2).to(dtype), b=nn.Parameter(torch.zeros(2)), n=torch.tensor(1))
    path = tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=not legacy)
    assert weights_problems(path, path.parent) == []


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_torch_file_is_seen(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(1), "x": Attack()}, path, _use_new_zipfile_serialization=not legacy)
    assert "system" in weights_problems(path, path.parent)[0]
    assert not Path("attacked").exists()


@pytest.mark.parametrize("protocol", range(6))
def test_code_in_a_plain_pickle_is_seen(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(pickle.dumps({"x": Attack()}, protocol))
    assert "system" in weights_problems(path, path.parent)[0]


def test_a_whole_module_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(nn.Sequential(nn.Linear(2, 2)), path)
    assert "torch.nn.modules" in weights_problems(path, path.parent)[0]


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
    assert weights_problems(path, path.parent) != []


def test_a_pickle_behind_a_harmless_one_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pickle.dumps(1, 2) + pickle.dumps(Attack(), 2))
    assert "system" in weights_problems(path, path.parent)[0]
    path.write_bytes(pickle.dumps(1, 2) + pickle.dumps(Attack(), 0))
    assert weights_problems(path, path.parent) != []


def test_garbage_and_other_formats(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"not a pickle")
    assert "neither" in weights_problems(tmp_path / "w.pth", tmp_path)[0]
    (tmp_path / "w.h5").write_bytes(b"\x89HDF")
    assert weights_problems(tmp_path / "w.h5", tmp_path) == []


# -- archives that carry code by design --------------------------------------------------------------------


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.names = ["a", "b"]
        self.factor = [1.5]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = self.layer(x) * self.factor[0] * len(self.names)
        return scaled


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archives")
    jit: Any = torch.jit  # untyped in torch
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jit.script(_Net()).save(folder / "scripted.pt")
        jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(folder / "traced.pt")
    sample = io.BytesIO()
    torch.save((torch.zeros(1, 2),), sample)
    # The members of what torch.export.save writes, which takes seconds; a real one is run by
    # tests/integration/host/test_weights.py.
    members = {
        "archive_format": b"pt2",
        "models/model.json": b"{}",
        "data/weights/weight_0": bytes(8),
        "data/weights/model_weights_config.json": b'{"config": {"w": {"path_name": "weight_0"}}}',
        "data/sample_inputs/model.pt": sample.getvalue(),
    }
    with zipfile.ZipFile(folder / "exported.pt2", "w") as archive:
        for name, data in members.items():
            archive.writestr(f"exported/{name}", data)
    torch.save(_Net().state_dict(), folder / "plain.pth")
    return folder


def test_archives_with_code_are_recognised_and_pass(archives: Path) -> None:
    for path in sorted(archives.iterdir()):
        assert weights_problems(path, archives) == []
    assert code_archives(archives) == [
        (archives / "exported.pt2", "torch.export"),
        (archives / "scripted.pt", "TorchScript"),
        (archives / "traced.pt", "TorchScript"),
    ]
    assert [len(weights_rows(path)) for path in sorted(archives.iterdir())] == [1, 0, 1, 1]


def _with_member(archive: Path, into: Path, ending: str, data: bytes) -> Path:
    """The archive with one member's bytes replaced, or with one member more."""
    path = into / archive.name
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(path, "w") as new:
        found = False
        for name in old.namelist():
            hit = name.endswith(ending)
            found |= hit
            new.writestr(name, data if hit else old.read(name))
        if not found:
            new.writestr(f"{old.namelist()[0].split('/')[0]}/{ending}", data)
    return path


@pytest.mark.parametrize(
    ("archive", "member", "nested"),
    [
        ("scripted.pt", "data.pkl", False),
        ("scripted.pt", "constants.pkl", False),
        ("scripted.pt", "code/more.debug_pkl", False),
        ("exported.pt2", "data/sample_inputs/model.pt", True),
        ("exported.pt2", "data/sample_inputs/model.pt", False),
        ("exported.pt2", "data/constants/custom_obj_0", False),
        ("exported.pt2", "data/weights/weight_0", True),
    ],
)
def test_pickled_code_in_an_archive_is_seen(
    archives: Path, tmp_path: Path, archive: str, member: str, nested: bool
) -> None:
    hostile = pickle.dumps(Attack(), 2)
    if nested:
        buffer = io.BytesIO()
        torch.save(Attack(), buffer)
        hostile = buffer.getvalue()
    path = _with_member(archives / archive, tmp_path, member, hostile)
    if member.endswith("weight_0"):
        said = b'{"config": {"w": {"path_name": "weight_0", "use_pickle": true}}}'
        (tmp_path / "first").mkdir()
        path = _with_member(path, tmp_path / "first", "data/weights/model_weights_config.json", said)
    assert "system" in weights_problems(path, tmp_path)[0]


@pytest.mark.parametrize(
    "config", [b"[]", b'{"config": {"w": 3}}', b"{", b'{"config": {"w": {"use_pickle": 1}}}']
)
def test_an_archive_with_odd_tables_is_refused_not_a_traceback(
    archives: Path, tmp_path: Path, config: bytes
) -> None:
    path = _with_member(archives / "exported.pt2", tmp_path, "model_weights_config.json", config)
    assert "neither" in weights_problems(path, tmp_path)[0]
