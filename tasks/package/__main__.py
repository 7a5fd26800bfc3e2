"""``python -m tasks.package inspect|validate|pack``: deep learning packages, without running any of them."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tasks.errors import ChiplineError
from tasks.package.card import card_text, problems_text
from tasks.package.examine import examine_package


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 0: the package is sound, 1: it is not, or it could not be read or made."""
    given = _parser().parse_args(arguments)
    try:
        if given.command == "inspect":
            return _inspect(given.package, as_json=given.json)
        return _validate(given.package, as_json=given.json)
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


def _write_json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
