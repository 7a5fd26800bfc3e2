"""``python -m tasks.package inspect|validate|pack|approve|revoke``: packages, without running any of them."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path, PurePosixPath

from tasks.errors import ChiplineError, PackageError
from tasks.package.card import card_text, problems_text
from tasks.package.dlpk import raise_problems
from tasks.package.examine import examine_package
from tasks.package.pack import files_below, pack_package


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 0: the package is sound, 1: it is not, or it could not be read or made."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "inspect":
            return _inspect(given.package, as_json=given.json)
        if given.command == "validate":
            return _validate(given.package, as_json=given.json)
        if given.command == "pack":
            return _pack(given)
        return _approve(given) if given.command == "approve" else _revoke(given)
    except ChiplineError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tasks.package", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, what in (("inspect", "show the card of a package"), ("validate", "say all that is wrong")):
        command = commands.add_parser(name, help=what)
        command.add_argument("package", type=Path, help="path of a .dlpk or a .zip with the same content")
        command.add_argument("--json", action="store_true", help="for programs")
    pack = commands.add_parser("pack", help="make a package of a model that was trained elsewhere")
    pack.add_argument("output", type=Path, help="the .dlpk to write; its stem names the package")
    pack.add_argument("--definition", type=Path, required=True, help="the .emd")
    pack.add_argument("--weights", type=Path, help="the file of the weights")
    pack.add_argument("--function", type=Path, help="the inference function's .py")
    pack.add_argument(
        "--extra", type=Path, action="append", default=[], help="another file, or a folder with its files"
    )
    approve = commands.add_parser(
        "approve", help="the operator's word that a package may run here; needs the admin's keys"
    )
    approve.add_argument("package", help="path or s3:// address of the package")
    approve.add_argument("--by", required=True, help="who approves it")
    approve.add_argument("--reason", required=True, help="why, for example where it comes from")
    revoke = commands.add_parser(
        "revoke", help="the operator's word that a package runs here no more; needs the admin's keys"
    )
    revoke.add_argument("package", help="path or s3:// address of the package, or its SHA-256")
    revoke.add_argument("--by", required=True, help="who revokes it")
    revoke.add_argument("--reason", required=True, help="why, for example what it did")
    return parser


def _inspect(path: Path, *, as_json: bool) -> int:
    examination = examine_package(path)
    if as_json:
        _write_json(examination.to_dict())
    else:
        sys.stdout.write(card_text(examination))
        sys.stderr.write(problems_text(examination.problems))
    return 1 if examination.problems else 0


def _validate(path: Path, *, as_json: bool) -> int:
    examination = examine_package(path)
    if as_json:
        shown = examination.to_dict()
        _write_json({key: shown[key] for key in ("file", "name", "sha256", "size", "sound", "problems")})
    elif examination.problems:
        sys.stdout.write(problems_text(examination.problems))
    else:
        sys.stdout.write(f"{examination.file} is sound: {examination.name}, SHA-256 {examination.digest}\n")
    return 1 if examination.problems else 0


def _pack(given: argparse.Namespace) -> int:
    output: Path = given.output
    if output.suffix != ".dlpk":
        raise PackageError(f"{output} is no name for a package.", "Give the output the suffix .dlpk.")
    path, digest = pack_package(
        name=output.stem,
        definition=given.definition,
        weights=given.weights,
        function=given.function,
        extra=files_below(given.extra),
        into=output.parent,
    )
    sys.stdout.write(f"{path} {digest}\n")
    return 0


def _approve(given: argparse.Namespace) -> int:
    # The store's libraries are loaded for this command only.
    from tasks.package.bring import local_copy
    from tasks.package.trust import approve_package
    from tasks.store import ObjectStore

    store = ObjectStore()
    with tempfile.TemporaryDirectory(prefix="package-") as scratch:
        examination = examine_package(local_copy(store, given.package, Path(scratch)))
    sys.stdout.write(card_text(examination))
    raise_problems(examination.file, examination.problems)
    approval = approve_package(
        store,
        examination.digest,
        name=str(examination.name),
        uri=given.package,
        approved_by=given.by,
        reason=given.reason,
    )
    sys.stdout.write(f"approved by {approval.approved_by} at {approval.approved_at}: {approval.reason}\n")
    return 0


def _revoke(given: argparse.Namespace) -> int:
    from tasks.package.bring import local_copy
    from tasks.package.dlpk import file_digest
    from tasks.package.trust import is_digest, revoke_package
    from tasks.store import ObjectStore

    store = ObjectStore()
    digest, name = given.package.lower().removeprefix("sha256:"), given.package
    if not is_digest(digest):
        # Its bytes are hashed and not looked into: it need not even be a sound package.
        with tempfile.TemporaryDirectory(prefix="package-") as scratch:
            digest = file_digest(local_copy(store, given.package, Path(scratch)))
        name = PurePosixPath(given.package).stem
    revocation = revoke_package(store, digest, name=name, revoked_by=given.by, reason=given.reason)
    sys.stdout.write(
        f"revoked by {revocation.revoked_by} at {revocation.revoked_at}: {revocation.reason} ({digest})\n"
    )
    return 0


def _write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
