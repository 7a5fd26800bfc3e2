"""``python -m tasks.package inspect|validate FILE``: look into a package without running any of it."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from tasks.errors import ChiplineError
from tasks.package.dlpk import Package, open_package


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 when the package is sound."""
    parser = argparse.ArgumentParser(prog="python -m tasks.package", description=__doc__)
    parser.add_argument("command", choices=["inspect", "validate"])
    parser.add_argument("package", type=Path, help="path of a .dlpk")
    given = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            package = open_package(given.package, Path(folder))
            text = describe(package) if given.command == "inspect" else f"{package.name} {package.digest}\n"
    except ChiplineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(text)
    return 0


def describe(package: Package) -> str:
    """Digest, files and definition of a package, for people."""
    files = sorted(path for path in package.folder.rglob("*") if path.is_file())
    lines = [f"package  {package.name}", f"sha256   {package.digest}", "files"]
    lines += [
        f"  {path.stat().st_size:>12,}  {path.relative_to(package.folder).as_posix()}" for path in files
    ]
    definition = json.dumps(package.definition.to_dict(), indent=2, ensure_ascii=False)
    return "\n".join([*lines, "definition", definition]) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
