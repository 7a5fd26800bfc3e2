"""What the demo ends with: accuracy on scenes that no model saw, and where the results are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from infra.demo.chains import CHAINS, result_kind
from infra.local.stack import LocalStack
from tasks.assess.report import shown
from tasks.assess.run import DATA
from tasks.errors import NotFoundError
from tasks.store import ObjectStore, current, join, sync_folder

_MEASURES = {"objects": ("AP", "F1_Score", "Precision", "Recall"), "pixels": ("IoU", "F1_Score")}


def summary(stack: LocalStack) -> str:
    """Accuracy by chain, and the folder into which the outputs were copied for a look."""
    store = ObjectStore()
    lines = ["What was found in scenes that the models never saw (95 % intervals over blocks of ground):"]
    for name, chain in CHAINS.items():
        lines += [f"  {name} ({chain['model_type']})"]
        lines += _accuracy(store, name, "Yellowstone, east (where the model is at home)")
        lines += _accuracy(store, f"{name}_florida", "Florida (another forest, another UTM zone)")
    folder = stack.layout.home / "demo"
    lines += ["", f"Copied for a look to {folder}:"]
    for name in CHAINS:
        lines += [f"  {path.relative_to(folder)}" for path in _copy(store, name, folder)]
    lines += [
        "Open the .gpkg and .tif in QGIS, the .jpg anywhere; each run's page in Prefect shows them too.",
    ]
    return "\n".join(lines)


def _accuracy(store: ObjectStore, name: str, where: str) -> list[str]:
    rows = _rows(store, name)
    lines = []
    for row in rows:
        # The mean over one class is that class; background is everywhere.
        if row["Class"] in ("All", "background"):
            continue
        numbers = ", ".join(f"{measure} {shown(row, measure)}" for measure in _MEASURES[row["Kind"]])
        lines.append(f"    {where}: {numbers}")
    return lines


def _rows(store: ObjectStore, name: str) -> list[dict[str, Any]]:
    folder = current(store, "outputs/compute_accuracy", name)
    if folder is None:
        raise NotFoundError(f"No accuracy was published as {name}.", "Run the demo again.")
    rows: list[dict[str, Any]] = json.loads(store.get(join(folder, DATA)))["rows"]
    return rows


def _copy(store: ObjectStore, name: str, into: Path) -> list[Path]:
    folder = current(store, f"outputs/{result_kind(name)}", name)
    if folder is None:
        raise NotFoundError(f"No result was published as {name}.", "Run the demo again.")
    # A folder of its own per run key: an earlier demo's copy is never mixed with this one's.
    copied = sync_folder(store, folder, into / name / folder.rstrip("/").rsplit("/", 1)[1][:12])
    return sorted(path for path in copied.iterdir() if path.suffix in (".gpkg", ".tif", ".jpg", ".parquet"))
