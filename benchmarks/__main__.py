"""``make bench``: every benchmark as README.md beside this file quotes it, one after the other.

python -m benchmarks [NAME …]     with names, only those
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
# Name, script, arguments. Long ones last.
RUNS: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("host", "host_boundary.py", ()),
    ("export", "export_chips.py", ("--large", "32768")),
    ("upload", "upload_chips.py", ()),
    ("suppression", "infer_suppression.py", ("--rounds", "2")),
    ("vectorise", "infer_vectorise.py", ()),
    ("origins", "infer_origins.py", ()),
    ("seams", "infer_seams.py", ()),
    ("planning", "infer_planning.py", ()),
    ("engine-only", "infer_overhead.py", ("--engine-only", "--size", "10000")),
    ("engines", "execution_engines.py", ()),
    ("engine-starts", "engine_starts.py", ()),
    ("engine", "infer_engine.py", ("--size", "8192", "--naive", "--s3", "OPENVINO/BFLOAT16")),
    ("borders", "infer_borders.py", ()),
    ("memory", "infer_memory.py", ()),
    ("bytes", "infer_bytes.py", ("--size", "8192", "--read-threads", "1")),
    ("scaling", "infer_scaling.py", ()),
    ("train-loading", "train_loading.py", ()),
    ("train-objects", "train_accuracy.py", ("--model", "FCOS", "--minutes", "5", "--area", "south")),
    ("train-plain", "train_plain.py", ("--model", "FCOS", "--minutes", "5", "--area", "south")),
    ("train-pixels", "train_accuracy.py", ("--model", "UNET", "--minutes", "5", "--area", "south")),
)


def main(names: list[str]) -> int:
    """Run them; the exit code is 0 when all ran."""
    known = [name for name, _, _ in RUNS]
    unknown = sorted(set(names) - set(known))
    if unknown:
        sys.stderr.write(f"No benchmark is named {', '.join(unknown)}. There are: {', '.join(known)}.\n")
        return 2
    failed = []
    for name, script, arguments in RUNS:
        if names and name not in names:
            continue
        sys.stdout.write(f"\n=== {name}: python benchmarks/{script} {' '.join(arguments)}\n")
        sys.stdout.flush()
        command = [sys.executable, str(FOLDER / script), *arguments]
        if subprocess.run(command, cwd=FOLDER.parent, check=False).returncode != 0:
            failed.append(name)
    if failed:
        sys.stderr.write(f"Failed: {', '.join(failed)}\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
