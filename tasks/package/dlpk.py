"""Deep learning packages (``.dlpk``): a deterministic zip out, a distrustful unpacking in.

The format and the order of the checks are stated in ``docs/formats/emd-dlpk.md``. Nothing of a package
is imported, loaded or executed here.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from tasks.errors import NotFoundError, PackageError
from tasks.package.checks import (
    Problem,
    UnpackLimits,
    clean_member,
    in_order,
    inside,
    is_root_definition,
    member_problems,
    package_problems,
    path_problem,
    problem,
    read_root_definition,
    root_definition,
    root_problems,
)
from tasks.package.definition import ModelDefinition

if TYPE_CHECKING:
    from tasks.package.trust import Trust

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can say
_CHUNK = 1 << 20


# What zipfile and its decoders raise over bytes that are no zip, or no longer one.
_BROKEN = (
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    IndexError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
)
_SEVEN_ZIP = b"7z\xbc\xaf\x27\x1c"


@dataclass(frozen=True)
class Package:
    """An unpacked, checked package."""

    folder: Path
    """Where its files lie; the ``.emd`` is directly inside."""
    definition: ModelDefinition
    digest: str
    """SHA-256 of the ``.dlpk`` file, hexadecimal."""
    name: str
    """Stem of the ``.emd``."""
    trust: Trust | None = None
    """By what it is trusted; None where nobody has asked."""

    @property
    def made_here(self) -> bool:
        """Whether a training of this installation made it; any other package runs contained only."""
        return self.trust is not None and self.trust.kind == "made here"

    @property
    def emd_path(self) -> Path:
        """The model definition's file; what ``initialize(model=…)`` receives."""
        return root_definition(self.folder)

    @property
    def function_path(self) -> Path | None:
        """The packaged inference function; None where a built-in one is asked for."""
        named = self.definition.inference_function
        if named is None or self.definition.builtin_function is not None:
            return None
        return inside(self.folder, named)

    @property
    def weights_path(self) -> Path | None:
        """The weights; None where the definition names none or the folder itself (``"."``)."""
        named = self.definition.model_file
        if named in (None, "", "."):
            return None
        path = inside(self.folder, str(named))
        return path if path is not None and path.is_file() else None


def write_dlpk(path: Path, definition: ModelDefinition, files: Mapping[str, bytes | Path]) -> str:
    """Write a package whose bytes depend on nothing but its content; returns its SHA-256.

    Args:
        path: the ``.dlpk``; its stem names the ``.emd`` inside.
        files: content or file by relative member path, without the ``.emd``.

    Raises:
        PackageError: a member path is not plain and relative, or would be a second root ``.emd``.
    """
    emd_name = f"{path.stem}.emd"
    members: dict[str, bytes | Path] = {emd_name: definition.to_json().encode()}
    for name, content in files.items():
        fault = path_problem(name)
        if fault or name.endswith("/"):
            raise PackageError(
                f"The member {name!r} cannot go into a package: {fault or 'it names a folder'}.",
                "Give a plain relative path with forward slashes.",
            )
        if name in members or ("/" not in name and name.lower().endswith(".emd")):
            raise PackageError(
                f"The member {name!r} would be a second model definition.",
                "Leave out the .emd; it is written.",
            )
        members[name] = content
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".dlpk-", delete=False) as stream:
        temporary = Path(stream.name)
        try:
            _write_zip(stream, members)
            stream.flush()
            temporary.chmod(0o644)
            digest = file_digest(temporary)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return digest


def _write_zip(stream: IO[bytes], members: Mapping[str, bytes | Path]) -> None:
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, _EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system = 3  # Unix, wherever it is written
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            content = members[name]
            info.file_size = len(content) if isinstance(content, bytes) else content.stat().st_size
            with archive.open(info, "w") as target:
                if isinstance(content, bytes):
                    target.write(content)
                else:
                    with content.open("rb") as source:
                        shutil.copyfileobj(source, target, _CHUNK)


def file_digest(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def open_package(dlpk: Path, into: Path, limits: UnpackLimits | None = None) -> Package:
    """Check a package and unpack it once into ``into/<digest>/<name>/``.

    The unpacked folder appears whole or not at all; a second call for the same bytes only reads the
    definition again.

    Raises:
        NotFoundError: there is no such file.
        PackageError: every problem that was found, in one message, in the order of the checks: zip,
            member paths, one root ``.emd``, model type, function, weights, classes, numbers.
    """
    digest = existing_digest(dlpk)
    home = into / digest
    if not home.is_dir():
        into.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=into, prefix=".unpacking-"))
        try:
            _, problems = unpack_and_check(dlpk, temporary, limits)
            raise_problems(dlpk.name, problems)
            _move_whole(temporary, home)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    package = unpacked_package(digest, into)
    if package is None:  # pragma: no cover - it was put there above
        raise PackageError(f"The package {dlpk.name} vanished from {into}.", "Do not clean the cache now.")
    return package


def existing_digest(dlpk: Path) -> str:
    """SHA-256 of a package's file.

    Raises:
        NotFoundError: there is no such file.
    """
    if not dlpk.is_file():
        raise NotFoundError(f"There is no package {dlpk}.", "Give the path of an existing .dlpk file.")
    return file_digest(dlpk)


def unpacked_package(digest: str, into: Path) -> Package | None:
    """The package of this digest if it was unpacked into ``into`` before, without its ``.dlpk``."""
    home = into / digest
    if not home.is_dir():
        return None
    folder = next(entry for entry in sorted(home.iterdir()) if entry.is_dir())
    definition, problems = read_root_definition(folder)
    if definition is None or problems:
        raise PackageError(
            f"The unpacked package in {folder} was changed: {'; '.join(problems)}.",
            f"Remove {home}; it is unpacked again.",
        )
    return Package(folder=folder, definition=definition, digest=digest, name=folder.name)


def _move_whole(temporary: Path, home: Path) -> None:
    try:
        temporary.rename(home)
    except OSError:
        if not home.is_dir():  # another process was first: its content is the same
            raise


def raise_problems(name: str, problems: list[Problem]) -> None:
    """Refuse a package with problems: all of them in one message, with their remedies.

    Raises:
        PackageError: there are problems.
    """
    if problems:
        listed = "; ".join(item.text for item in problems)
        remedies = " ".join(dict.fromkeys(item.remedy for item in problems))
        raise PackageError(f"The package {name} cannot be used: {listed}.", remedies)


def unpack_and_check(
    dlpk: Path, target: Path, limits: UnpackLimits | None = None
) -> tuple[Path | None, list[Problem]]:
    """Unpack what may be unpacked into ``target/<emd stem>`` and say all that is wrong.

    Every member is judged before any is written; those with a problem are left out, so that the checks
    after it can still be made. A package may be used only where there is no problem at all.

    Returns:
        The folder, None where there is no definition to find, and the problems in the order of the checks.
    """
    limits = limits or UnpackLimits()
    folder: Path | None = None
    problems: list[Problem] = []
    try:
        with zipfile.ZipFile(dlpk) as archive:
            infos = archive.infolist()
            problems, sound = member_problems(infos, limits)
            names = [info.filename for info in (sound if problems else infos)]
            problems += root_problems(names if sound or not infos else [info.filename for info in infos])
            if not any(item.check == "definition" for item in problems) and sound:
                root = next(name for name in map(clean_member, names) if is_root_definition(name))
                folder = target / PurePosixPath(root).stem
                folder.mkdir()
                _extract(archive, sound, folder, limits)
    except _BROKEN as error:
        return None, in_order([_broken(dlpk, error), *problems])
    if folder is not None:
        problems += package_problems(folder)
    return folder, in_order(problems)


def _broken(dlpk: Path, error: Exception) -> Problem:
    with dlpk.open("rb") as stream:
        if stream.read(len(_SEVEN_ZIP)) == _SEVEN_ZIP:
            return problem(
                "zip",
                "it is a 7z archive, which is not read here",
                f"Unpack it and zip its files: 7z x {dlpk.name} -ounpacked && cd unpacked && "
                f"zip -r ../{dlpk.stem}-zip.dlpk . ; a .dlpk is a plain zip file.",
            )
    return problem("zip", f"it cannot be unpacked: {error or type(error).__name__}")


def _extract(
    archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], folder: Path, limits: UnpackLimits
) -> None:
    # Headers lie: the bytes are counted while they come out, per member and in total.
    written = 0
    for info in infos:
        name = clean_member(info.filename)
        target = folder / name
        if name.endswith("/"):
            target.mkdir(parents=True, exist_ok=True)
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        size = 0
        descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o644)
        with archive.open(info) as source, os.fdopen(descriptor, "wb") as sink:
            while chunk := source.read(_CHUNK):
                size += len(chunk)
                written += len(chunk)
                if size > info.file_size or written > limits.bytes:
                    raise zipfile.BadZipFile(f"member {name!r} is larger than its header says")
                sink.write(chunk)
