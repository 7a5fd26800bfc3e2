"""Non Maximum Suppression of crowded boxes and polygons against torchvision and shapely's tree alone.

    python benchmarks/infer_suppression.py [--rounds 3]

Prints a Markdown row per case: the median wall time and its range, the highest memory over what the same
process holds before it starts, and what stays. Objects lie in heaps of twenty. At a hundred thousand the kept
sets of all must be equal; at a million ours runs alone, since torchvision compares every pair. SAHI is not
among the dependencies: it suppresses in Python, pair by pair, by the rule of torchvision.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import shapely

PROJECT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(PROJECT))

RATIO = 0.3
CASES = (
    ("boxes", 100_000, ("ours", "torchvision", "shapely")),
    ("polygons", 100_000, ("ours", "shapely")),
    ("boxes", 1_000_000, ("ours",)),
    ("polygons", 1_000_000, ("ours",)),
)


def crowded(kind: str, count: int) -> tuple[Any, Any]:
    """Corners of boxes, or hexagons as geometries; and distinct confidences."""
    chooser = np.random.default_rng(0)
    middles = np.repeat(chooser.random((count // 20, 2)) * (count / 4) ** 0.5 * 10, 20, axis=0)
    low = middles + chooser.normal(0, 3, (count, 2))
    size = chooser.uniform(8, 24, (count, 2))
    scores = chooser.permutation(count) / count
    if kind == "boxes":
        return np.hstack([low, low + size]), scores
    angles = np.arange(6) * np.pi / 3
    ring = np.column_stack([np.cos(angles), np.sin(angles)])
    return shapely.polygons((low + size / 2)[:, None] + ring * size[:, None] / 2), scores


def ours(given: Any, scores: Any) -> Any:
    """Chipline's, geometries made of boxes included."""
    from tasks.infer.suppression import suppress

    shapes = shapely.box(*given.T) if given.ndim == 2 else given
    return np.flatnonzero(suppress(shapes, scores, max_overlap_ratio=RATIO))


def torchvision(given: Any, scores: Any) -> Any:
    """torchvision.ops.nms on the CPU."""
    import torch
    from torchvision.ops import nms

    return np.sort(nms(torch.from_numpy(given), torch.from_numpy(scores), RATIO).numpy())


def shapely_tree(given: Any, scores: Any) -> Any:
    """All pairs from one query of shapely's tree, intersected, and then the greedy pass."""
    order = np.argsort(-scores, kind="stable")
    shapes = (shapely.box(*given.T) if given.ndim == 2 else given)[order]
    one, other = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    one, other = one[one < other], other[one < other]
    areas = shapely.area(shapes)
    common = shapely.area(shapely.intersection(shapes[one], shapes[other]))
    over = common > RATIO * (areas[one] + areas[other] - common)
    one, other = one[over], other[over]
    sequence = np.argsort(one, kind="stable")
    starts = np.searchsorted(one[sequence], np.arange(len(shapes) + 1))
    partners, stays = other[sequence], np.ones(len(shapes), np.bool_)
    for rank in range(len(shapes)):
        if stays[rank]:
            stays[partners[starts[rank] : starts[rank + 1]]] = False
    return np.sort(order[stays])


CONTENDERS = {"ours": ours, "torchvision": torchvision, "shapely": shapely_tree}


def once(kind: str, count: int, who: str) -> None:
    """One measurement in this process, printed as JSON."""
    given, scores = crowded(kind, count)
    CONTENDERS[who](*crowded(kind, 1000))  # what is loaded on first use is no part of it
    process, peak, over = psutil.Process(), 0, threading.Event()
    before = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.02):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    kept = CONTENDERS[who](given, scores)
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()
    digest = hashlib.sha256(kept.astype(np.int64).tobytes()).hexdigest()
    answer = {"s": seconds, "mib": max(0, peak - before) / 2**20, "kept": len(kept), "digest": digest}
    sys.stdout.write(json.dumps(answer) + "\n")


def main() -> None:
    """All cases."""
    from benchmarks.watched import watched

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--once", nargs=3, metavar=("KIND", "COUNT", "WHO"))
    given = options.parse_args()
    if given.once:
        once(given.once[0], int(given.once[1]), given.once[2])
        return
    sys.stdout.write("| objects | by | seconds (range) | memory | stay |\n|---|---|---|---|---|\n")
    for kind, count, contenders in CASES:
        digests = {}
        for who in contenders:
            seconds, memory, kept = [], 0.0, 0
            for _ in range(given.rounds):
                with tempfile.TemporaryDirectory() as folder:
                    answer = watched(
                        [sys.executable, __file__, "--once", kind, str(count), who], Path(folder)
                    )
                seconds.append(answer["s"])
                memory, kept = max(memory, answer["mib"]), answer["kept"]
                digests[who] = answer["digest"]
            spread = f"{median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"
            sys.stdout.write(f"| {count:,} {kind} | {who} | {spread} | {memory:.0f} MiB | {kept:,} |\n")
            sys.stdout.flush()
        if len(set(digests.values())) > 1:
            raise SystemExit(f"{count:,} {kind}: the kept sets differ: {digests}")


if __name__ == "__main__":
    main()
