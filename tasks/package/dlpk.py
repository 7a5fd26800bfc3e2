"""Deep learning packages (``.dlpk``): a deterministic zip out, a distrustful unpacking in.

The format and the order of the checks are stated in ``docs/formats/emd-dlpk.md``. Nothing of a package
is imported, loaded or executed here.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import tempfile
import unicodedata
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tasks.errors import NotFoundError, PackageError
from tasks.package.definition import MODEL_TYPES, ModelDefinition, parse_definition
from tasks.package.weights_check import weights_problems

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest time a zip can say
_CHUNK = 1 << 20


@dataclass(frozen=True)
class UnpackLimits:
    """What a package may grow to when it is unpacked."""

    members: int = 20_000
    bytes: int = 16 * 2**30
    ratio: int = 200  # unpacked over packed, for members beyond ratio_from bytes
    ratio_from: int = 16 * 2**20


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

    @property
    def emd_path(self) -> Path:
        """The model definition's file; what ``initialize(model=…)`` receives."""
        return next(path for path in sorted(self.folder.iterdir()) if path.suffix.lower() == ".emd")

    @property
    def function_path(self) -> Path | None:
        """The packaged inference function; None where a built-in one is asked for."""
        named = self.definition.inference_function
        if named is None or self.definition.builtin_function is not None:
            return None
        return _inside(self.folder, named)

    @property
    def weights_path(self) -> Path | None:
        """The weights; None where the definition names none or the folder itself (``"."``)."""
        named = self.definition.model_file
        if named in (None, "", "."):
            return None
        path = _inside(self.folder, str(named))
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
        problem = _path_problem(name)
        if problem or name.endswith("/"):
            raise PackageError(
                f"The member {name!r} cannot go into a package: {problem or 'it names a folder'}.",
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
    if not dlpk.is_file():
        raise NotFoundError(f"There is no package {dlpk}.", "Give the path of an existing .dlpk file.")
    digest = file_digest(dlpk)
    home = into / digest
    if not home.is_dir():
        into.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=into, prefix=".unpacking-"))
        try:
            name = _unpack(dlpk, temporary, limits or UnpackLimits())
            folder = temporary / name
            _raise_problems(dlpk, package_problems(folder))
            _move_whole(temporary, home)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    package = unpacked_package(digest, into)
    if package is None:  # pragma: no cover - it was put there above
        raise PackageError(f"The package {dlpk.name} vanished from {into}.", "Do not clean the cache now.")
    return package


def unpacked_package(digest: str, into: Path) -> Package | None:
    """The package of this digest if it was unpacked into ``into`` before, without its ``.dlpk``."""
    home = into / digest
    if not home.is_dir():
        return None
    folder = next(entry for entry in sorted(home.iterdir()) if entry.is_dir())
    definition, problems = _read_root_definition(folder)
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


def _raise_problems(dlpk: Path, problems: list[str]) -> None:
    if problems:
        listed = "; ".join(problems)
        raise PackageError(
            f"The package {dlpk.name} cannot be used: {listed}.",
            "Correct the package and pack it again, all files at the root of the zip; "
            "docs/formats/emd-dlpk.md says what it must hold.",
        )


def _unpack(dlpk: Path, target: Path, limits: UnpackLimits) -> str:
    """Unpack into ``target/<emd stem>``; returns that name. Every member is judged before any is written."""
    try:
        with zipfile.ZipFile(dlpk) as archive:
            infos = archive.infolist()
            problems = _member_problems(infos, limits)
            roots = [info.filename for info in infos if _is_root_emd(_clean(info.filename))]
            if not problems:
                problems = _root_problems([_clean(name) for name in roots], infos)
            _raise_problems(dlpk, problems)
            name = PurePosixPath(_clean(roots[0])).stem
            folder = target / name
            folder.mkdir()
            _extract(archive, infos, folder, limits)
            return name
    except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, RuntimeError, EOFError) as error:
        raise PackageError(
            f"The package {dlpk.name} cannot be unpacked: {error}.",
            "A .dlpk is a plain zip file (pack a 7z archive again as zip); download or pack it again.",
        ) from error


def _clean(name: str) -> str:
    # Windows tools have written backslashes into zips; they mean folders, for attackers too.
    return name.replace("\\", "/")


def _is_root_emd(name: str) -> bool:
    return "/" not in name and name.lower().endswith(".emd") and len(name) > len(".emd")


def _path_problem(name: str) -> str | None:
    cleaned = _clean(name)
    parts = cleaned.rstrip("/").split("/")
    if cleaned.startswith("/") or (len(cleaned) > 1 and cleaned[1] == ":"):
        return "its path is absolute"
    if ".." in parts:
        return "its path leaves the package ('..')"
    if not cleaned.strip("/") or "" in parts or "." in parts:
        return "its path has an empty part"
    if any(unicodedata.category(character) == "Cc" for character in cleaned):
        return "its path has control characters"
    if any(len(part.encode(errors="surrogatepass")) > 200 for part in parts) or len(cleaned) > 1000:
        return "its path is too long"
    return None


def _member_problems(infos: list[zipfile.ZipInfo], limits: UnpackLimits) -> list[str]:
    if len(infos) > limits.members:
        return [f"it has {len(infos)} members, more than {limits.members}"]
    problems = []
    seen: dict[str, str] = {}
    for info in infos:
        problem = _path_problem(info.filename) or _kind_problem(info) or _size_problem(info, limits)
        if problem:
            problems.append(f"member {info.filename!r}: {problem}")
        folded = unicodedata.normalize("NFC", _clean(info.filename)).rstrip("/").casefold()
        if folded in seen and not (info.is_dir() and seen[folded] == info.filename):
            problems.append(f"member {info.filename!r} occurs twice (also as {seen[folded]!r})")
        seen[folded] = info.filename
    files = {key for key, name in seen.items() if not _clean(name).endswith("/")}
    for key in seen:
        parents = {str(parent) for parent in PurePosixPath(key).parents}
        for parent in sorted(parents & files):
            problems.append(f"member {seen[parent]!r} is a file and a folder")
    total = sum(info.file_size for info in infos)
    if total > limits.bytes:
        problems.append(f"it would unpack to {total} bytes, more than {limits.bytes}")
    return problems


def _kind_problem(info: zipfile.ZipInfo) -> str | None:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        return "it is a link"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is neither a file nor a folder"
    if info.flag_bits & 0x1:
        return "it is encrypted"
    return None


def _size_problem(info: zipfile.ZipInfo, limits: UnpackLimits) -> str | None:
    if info.file_size > limits.ratio_from and info.file_size > limits.ratio * max(info.compress_size, 1):
        return f"it unpacks to more than {limits.ratio} times its packed size"
    return None


def _root_problems(roots: list[str], infos: list[zipfile.ZipInfo]) -> list[str]:
    if len(roots) == 1:
        return []
    if roots:
        return [f"it has {len(roots)} model definitions at its root ({', '.join(sorted(roots))}), not one"]
    nested = sorted(_clean(info.filename) for info in infos if _clean(info.filename).lower().endswith(".emd"))
    if nested:
        return [
            f"its model definition lies in a folder ({nested[0]}), not at the root: "
            "zip the files themselves, not their folder"
        ]
    return ["it has no model definition (.emd) at its root"]


def _extract(
    archive: zipfile.ZipFile, infos: list[zipfile.ZipInfo], folder: Path, limits: UnpackLimits
) -> None:
    # Headers lie: the bytes are counted while they come out, per member and in total.
    written = 0
    for info in infos:
        name = _clean(info.filename)
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


def _read_root_definition(folder: Path) -> tuple[ModelDefinition | None, list[str]]:
    emd = next(path for path in sorted(folder.iterdir()) if path.suffix.lower() == ".emd")
    try:
        text = emd.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        return None, [f"the .emd is not UTF-8 text ({error})"]
    return parse_definition(text)


_CATEGORIES = {
    "ModelType": 0,
    "InferenceFunction": 1,
    "Framework": 1,
    "ModelConfiguration": 1,
    "ModelFile": 2,
    "ModelFiles": 2,
    "Classes": 3,
}
_NUMBERS = 4


def package_problems(folder: Path) -> list[str]:
    """Everything that is wrong with an unpacked package, in the order of the checks."""
    definition, field_problems = _read_root_definition(folder)
    if definition is None:
        return field_problems
    found: list[tuple[int, str]] = []
    for problem in field_problems:
        key = problem.split(":")[0].split(".")[0]
        found.append((_CATEGORIES.get(key, _NUMBERS), problem))
    wrong = {problem.split(":")[0].split(".")[0] for problem in field_problems}
    if "ModelType" not in wrong:
        found += [(0, problem) for problem in _type_problems(definition)]
    if "InferenceFunction" not in wrong:
        found += [(1, problem) for problem in _function_problems(definition, folder)]
    if "ModelFile" not in wrong:
        found += [(2, problem) for problem in _weights_problems(definition, folder)]
    if "Classes" not in wrong:
        found += [(3, problem) for problem in _class_problems(definition)]
    found += [(4, problem) for problem in _number_problems(definition)]
    return [problem for _, problem in sorted(found, key=lambda item: item[0])]


def _type_problems(definition: ModelDefinition) -> list[str]:
    if definition.model_type is None:
        return ["ModelType is missing"]
    if definition.model_type not in MODEL_TYPES:
        return [f"ModelType {definition.model_type!r} is unknown (known: {', '.join(MODEL_TYPES)})"]
    return []


def _function_problems(definition: ModelDefinition, folder: Path) -> list[str]:
    if definition.builtin_function is not None:
        return []
    named = definition.inference_function
    if not named:
        return [
            "InferenceFunction is missing, and Framework and ModelConfiguration "
            f"({definition.framework!r}, {definition.configuration_name!r}) name no predefined one"
        ]
    path = _inside(folder, named)
    if path is None:
        return [f"InferenceFunction {named!r} lies outside the package"]
    if path.suffix.lower() != ".py":
        return [f"InferenceFunction {named!r} is not a Python file"]
    if not path.is_file():
        return [f"InferenceFunction {named!r} is not in the package"]
    return []


def _weights_problems(definition: ModelDefinition, folder: Path) -> list[str]:
    names = [name for name in [definition.model_file, *(definition.model_files or [])] if name]
    problems = []
    for name in names:
        if name == ".":
            continue
        path = _inside(folder, name.replace("\\", "/"))
        if path is None:
            problems.append(f"ModelFile {name!r} lies outside the package")
        elif not path.exists():
            problems.append(f"ModelFile {name!r} is not in the package")
        elif path.is_file():
            problems += weights_problems(path)
    # Prompted detectors bring no weights; whoever names a predefined framework must have some.
    if not names and definition.framework and definition.builtin_function is not None:
        problems.append("ModelFile is missing")
    return problems


def _class_problems(definition: ModelDefinition) -> list[str]:
    needed = definition.model_type in ("ObjectDetection", "ImageClassification", "InstanceDetection")
    if not definition.classes:
        return ["Classes is missing or empty"] if needed else []
    problems = []
    values = [item.value for item in definition.classes]
    for value in sorted({value for value in values if values.count(value) > 1}):
        problems.append(f"Classes has the value {value} more than once")
    for index, item in enumerate(definition.classes):
        if not item.name.strip():
            problems.append(f"Classes.{index}.Name is empty")
    return problems


def _number_problems(definition: ModelDefinition) -> list[str]:
    problems = []
    for key, number, least in (
        ("ImageHeight", definition.image_height, 1),
        ("ImageWidth", definition.image_width, 1),
        ("BatchSize", definition.batch_size, 1),
        ("ModelPadding", definition.model_padding, 0),
        ("Padding", definition.padding, 0),
    ):
        if number is not None and number < least:
            problems.append(f"{key} is {number}, must be at least {least}")
    for key, size in (("MinCellSize", definition.min_cell_size), ("MaxCellSize", definition.max_cell_size)):
        if size is not None and not (size.x > 0 and size.y > 0):
            problems.append(f"{key} is {size.x} x {size.y}, must be positive")
    bands = definition.extract_bands or []
    if any(isinstance(band, int) and band < 0 for band in bands):
        problems.append(f"ExtractBands {bands} has a negative band")
    if definition.data_range is not None and not definition.data_range[0] < definition.data_range[1]:
        problems.append(f"DataRange {list(definition.data_range)} is empty")
    return problems


def _inside(folder: Path, name: str) -> Path | None:
    """``folder/name`` if it stays inside ``folder``, links followed."""
    candidate = (folder / name).resolve()
    return candidate if candidate.is_relative_to(folder.resolve()) else None
