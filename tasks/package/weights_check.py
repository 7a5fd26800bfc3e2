"""Looks into weight files for pickled code without running any of it.

``torch.load(..., weights_only=True)`` refuses such files too, but only when the function runs; here they
are refused when the package is opened, by reading the pickle's opcodes (``docs/formats/emd-dlpk.md``).
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

_TORCH_SUFFIXES = {".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle"}
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
)
# The largest networks have some ten thousand tensors with a dozen opcodes each.
_MAX_OPCODES = 5_000_000
_MAX_PICKLE_BYTES = 256 * 2**20
# Legacy torch files hold a chain of pickles (magic, version, system info, object, storage keys), then raw
# numbers.
_LEGACY_PICKLES = 5


def weights_problems(path: Path) -> list[str]:
    """What speaks against loading a weight file; empty for a plain state_dict and for other formats.

    Only files with a PyTorch or pickle suffix are looked at. TorchScript archives are let through: they
    are loaded by ``torch.jit``, which runs no Python.
    """
    if path.suffix.lower() not in _TORCH_SUFFIXES:
        return []
    try:
        found = {name for stream in _pickles(path) for name in _globals(stream)}
    except _BROKEN as error:
        return [f"the weights {path.name} are neither a PyTorch file nor a readable pickle ({error})"]
    unsafe = sorted(f"{module}.{name}" for module, name in found if not _is_safe(module, name))
    if not unsafe:
        return []
    return [
        f"the weights {path.name} hold pickled code or objects ({', '.join(unsafe[:5])}), "
        "not a plain state_dict"
    ]


def _is_safe(module: str, name: str) -> bool:
    if module in ("torch", "torch.storage") and (name.endswith("Storage") or name in _DTYPES):
        return True
    return (module, name) in _SAFE_NAMES


_DTYPES = {
    "float16", "float32", "float64", "bfloat16", "complex64", "complex128", "uint8", "int8", "int16",
    "int32", "int64", "bool", "uint16", "uint32", "uint64",
}  # fmt: skip


def _pickles(path: Path) -> Iterator[IO[bytes]]:
    if not zipfile.is_zipfile(path):
        with path.open("rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return  # TorchScript
        pickles = [name for name in names if name.endswith(".pkl")]
        if not pickles:
            raise ValueError("an archive without a pickle")
        for name in pickles:
            if archive.getinfo(name).file_size > _MAX_PICKLE_BYTES:
                raise ValueError(f"{name} is larger than {_MAX_PICKLE_BYTES} bytes")
            yield io.BytesIO(archive.read(name))


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
