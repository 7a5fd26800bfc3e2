"""What this machine has and lacks: interpreters, frameworks, devices, containment, GDAL, services.

The exit code is 1 when something has to be mended, 0 otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict

from infra.doctor.checks import examine
from infra.doctor.findings import as_text


def main(arguments: list[str] | None = None) -> int:
    """Look, say what is there, return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m infra.doctor", description=__doc__)
    parser.add_argument("--json", action="store_true", help="findings as one JSON object")
    chosen = parser.parse_args(arguments)
    findings = examine()
    problems = sum(finding.state == "problem" for finding in findings)
    if chosen.json:
        document = {"problems": problems, "findings": [asdict(finding) for finding in findings]}
        sys.stdout.write(json.dumps(document, indent=2) + "\n")
    else:
        sys.stdout.write(as_text(findings) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
