"""Looks into weight files without running any of them: pickled code, and archives that carry code by design.

``torch.load(..., weights_only=True)`` refuses pickled code too, but only when the function runs; here it is
refused when the package is opened, by reading the pickles' opcodes. TorchScript and ``torch.export`` archives
hold code of another kind, which cannot be judged by looking; they are recognised, and the host lets a
contained child load them only (``docs/formats/emd-dlpk.md``, "Weights").
"""

from __future__ import annotations

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from tasks.package.onnx_check import onnx_problems, onnx_summary

_TORCH_SUFFIXES = {".pth", ".pt", ".pt2", ".bin", ".ckpt", ".pkl", ".pickle"}
ArchiveKind = Literal["TorchScript", "torch.export"]
_SAFE_NAMES = {
    ("collections", "OrderedDict"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch", "Tensor"),
    ("torch.nn.parameter", "Parameter"),
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_tensor_v3"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch._utils", "_rebuild_qtensor"),
    ("torch._utils", "_rebuild_sparse_tensor"),
    ("torch._tensor", "_rebuild_from_type_v2"),
    ("torch.serialization", "_get_layout"),
    ("_codecs", "encode"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
}
# What TorchScript's own reader, which is no Python, makes objects with; classes of the network's own code are
# below __torch__.
_SCRIPT_NAMES = {
    ("torch.jit._pickle", name)
    for name in (
        "build_intlist",
        "build_doublelist",
        "build_boollist",
        "build_tensorlist",
        "build_tensor_from_id",
        "restore_type_tag",
    )
}
# What the readers raise over bytes that are no pickle or no zip.
_BROKEN = (
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    OSError,
    EOFError,
    IndexError,
    KeyError,
    MemoryError,  # a pickle may state any length
    NotImplementedError,
    OverflowError,
    RuntimeError,
    AttributeError,
    TypeError,  # JSON of another shape
)
# The largest networks have some ten thousand tensors with a dozen opcodes each.
_MAX_OPCODES = 5_000_000
_MAX_PICKLE_BYTES = 256 * 2**20
# Legacy torch files hold a chain of pickles (magic, version, system info, object, storage keys), then raw
# numbers.
_LEGACY_PICKLES = 5


def weights_problems(path: Path, folder: Path) -> list[str]:
    """What speaks against loading a weight file of the package in ``folder``; empty where nothing does.

    Files of PyTorch, pickles and ONNX are looked at; other formats pass.
    """
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return onnx_problems(path, folder)
    if suffix not in _TORCH_SUFFIXES:
        return []
    try:
        kind = archive_kind(path)
        found = {name for stream in _pickles(path, kind) for name in _globals(stream)}
    except _BROKEN as error:
        return [f"the weights {path.name} are neither a PyTorch file nor a readable pickle ({error})"]
    unsafe = sorted(f"{module}.{name}" for module, name in found if not _is_safe(module, name, kind))
    if not unsafe:
        return []
    return [
        f"the weights {path.name} hold pickled code or objects ({', '.join(unsafe[:5])}), "
        f"not {'plain data' if kind else 'a plain state_dict'}"
    ]


def weights_remedy(path: Path) -> str:
    """What to do about the problems of a weight file."""
    if path.suffix.lower() == ".onnx":
        return "Save the model with its data in the file itself, or in files of the package beside it."
    return (
        "Save the weights alone: torch.save(model.state_dict(), path); "
        "the inference function builds the model."
    )


def weights_rows(path: Path) -> list[tuple[str, str]]:
    """What a weight file says about itself, as rows of a card; nothing of formats that say nothing."""
    if path.suffix.lower() == ".onnx":
        try:
            found = onnx_summary(path)
        except ValueError:
            return []  # told among the problems
        opset = ", ".join(f"{domain} {version}" for domain, version in sorted(found.opset.items()))
        return [
            ("format", f"ONNX, operators {opset}"),
            ("inputs", "; ".join(found.inputs)),
            ("outputs", "; ".join(found.outputs)),
        ]
    if path.suffix.lower() not in _TORCH_SUFFIXES:
        return []
    try:
        kind = archive_kind(path)
    except _BROKEN:
        return []
    return [("format", f"{kind} archive: carries code, is loaded contained only")] if kind else []


def archive_kind(path: Path) -> ArchiveKind | None:
    """Whether a file is an archive that carries code by design; None for all else."""
    if not zipfile.is_zipfile(path):
        return None
    with zipfile.ZipFile(path) as archive:
        # Below the one folder of the archive; torch names it after the file.
        names = {name.partition("/")[2] or name for name in archive.namelist()}
    if "constants.pkl" in names:
        return "TorchScript"
    if "archive_format" in names or any(name.startswith("models/") for name in names):
        return "torch.export"
    # As written before torch 2.8.
    return "torch.export" if "serialized_exported_program.json" in names else None


def code_archives(folder: Path) -> list[tuple[Path, ArchiveKind]]:
    """The files of an unpacked package that carry code by design, named by its definition or not."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _TORCH_SUFFIXES or not path.is_file():
            continue
        try:
            kind = archive_kind(path)
        except _BROKEN:
            continue  # unreadable, by torch as well
        if kind is not None:
            found.append((path, kind))
    return found


def _is_safe(module: str, name: str, kind: ArchiveKind | None) -> bool:
    if module in ("torch", "torch.storage") and (name.endswith("Storage") or name in _DTYPES):
        return True
    if kind == "TorchScript" and (module.split(".")[0] == "__torch__" or (module, name) in _SCRIPT_NAMES):
        return True
    return (module, name) in _SAFE_NAMES


_DTYPES = {
    "float16", "float32", "float64", "bfloat16", "complex64", "complex128", "uint8", "int8", "int16",
    "int32", "int64", "bool", "uint16", "uint32", "uint64",
}  # fmt: skip


def _pickles(path: Path, kind: ArchiveKind | None) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
        pickles = {name for name in names if name.endswith((".pkl", ".debug_pkl"))}
        if kind == "torch.export":
            # What torch.export.load gives to torch.load: whole torch files, and tensors of odd kinds.
            pickles |= {name for name in names if name.endswith(".pt") or "/custom_obj" in name}
            pickles |= _pickled_tensors(archive) & names
        elif not pickles:
            raise ValueError("an archive without a pickle")
        for name in sorted(pickles):
            yield from _pickles_in(_member(archive, name))


def _pickles_in(data: bytes) -> Iterator[IO[bytes]]:
    """A member that is a pickle, or the pickles of one that is a torch file itself."""
    inner = io.BytesIO(data)
    if not zipfile.is_zipfile(inner):
        inner.seek(0)
        yield inner
        return
    with zipfile.ZipFile(inner) as archive:
        for name in archive.namelist():
            if name.endswith(".pkl"):
                yield io.BytesIO(_member(archive, name))


def _pickled_tensors(archive: zipfile.ZipFile) -> set[str]:
    found = set()
    for config in archive.namelist():
        if not config.endswith("_config.json"):
            continue
        entries = json.loads(_member(archive, config)).get("config", {})
        folder = config.rpartition("/")[0]
        found |= {f"{folder}/{entry['path_name']}" for entry in entries.values() if entry.get("use_pickle")}
    return found


def _member(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _MAX_PICKLE_BYTES:
        raise ValueError(f"{name} is larger than {_MAX_PICKLE_BYTES} bytes")
    return archive.read(name)


def _globals(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    yield from _globals_of_one(stream)
    for _ in range(_LEGACY_PICKLES - 1):
        following = stream.read(1)
        if not following:
            return
        if following != b"\x80":
            raise ValueError("bytes after the pickle that are no PyTorch data")
        stream.seek(-1, io.SEEK_CUR)
        yield from _globals_of_one(stream)


def _globals_of_one(stream: IO[bytes]) -> Iterator[tuple[str, str]]:
    # STACK_GLOBAL takes its two names from the stack; strings and memo reads are followed, as
    # pickletools itself does not simulate the stack's values.
    strings: list[object] = []
    memo: dict[int, object] = {}
    for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
        if count >= _MAX_OPCODES:
            raise ValueError(f"a pickle of more than {_MAX_OPCODES} steps")
        name = opcode.name
        if name in ("GLOBAL", "INST"):
            module, _, attribute = str(argument).partition(" ")
            yield module, attribute
            strings.append(None)
        elif name == "STACK_GLOBAL":
            if len(strings) < 2 or not all(isinstance(item, str) for item in strings[-2:]):
                yield "?", "?"  # names made at run time: never in a state_dict
            else:
                yield str(strings[-2]), str(strings[-1])
            strings.append(None)
        elif name in ("EXT1", "EXT2", "EXT4"):
            yield "copyreg", f"extension {argument}"
        elif name in ("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "UNICODE"):
            strings.append(argument)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            memo[int(str(argument))] = strings[-1] if strings else None
        elif name == "MEMOIZE":
            memo[len(memo)] = strings[-1] if strings else None
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            strings.append(memo.get(int(str(argument))))
        elif name not in ("PROTO", "FRAME"):
            strings.append(None)
