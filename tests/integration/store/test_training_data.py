"""Training data of every format, ours and foreign, read from S3 through the local cache."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks.errors import StoreError
from tasks.labels.schema import ClassSchema
from tasks.settings import settings
from tasks.store import Manifest, ObjectStore, Publication, join
from tasks.train.parameters import TrainParameters
from tasks.train.plan import make_plan
from tasks.train.work import open_inputs
from tasks.training_data import FORMATS, Chip, TrainingData, open_training_data, read_chip
from tasks.training_data.address import DataFolder
from tests.unit.training_data.exports import export
from tests.unit.training_data.samples import CLASSES, labels, sample

SIZE = (32, 32)


def written(folder: Path, name: str) -> TrainingData:
    """Two chips of a format, as an export writes them."""
    numbers = np.zeros(SIZE, np.uint16)
    numbers[4:20, 8:16] = 1
    boxes = [(1, 8.0, 4.0, 16.0, 20.0)]
    samples = []
    for number in range(2):
        one = sample(number, boxes, size=SIZE, value=1)
        place = (0.5, 0.0, 500_000.0 + 16 * number, 0.0, -0.5, 5_000_000.0)
        more: dict[str, Any] = {"mask": (numbers > 0).astype(np.uint8), "instances": {1: numbers}}
        samples.append(replace(one, transform=place, objects=labels(boxes), **more))
    sides = FORMATS[name].sides
    for side in sides:
        classes = CLASSES if FORMATS[name].needs_labels else ClassSchema(())
        panoptic = CLASSES if name == "Panoptic_Segmentation" else None
        export(folder / side, name, samples, classes, chip_format="TIFF", instance_classes=panoptic)
    return open_training_data(folder, name)


def seen(data: TrainingData) -> list[Any]:
    """All that a training can read of a folder."""
    readers: dict[str, Callable[[Chip], object]] = {
        "masks": data.format.mask,
        "boxes": data.format.boxes,
        "instances": data.format.instances,
        "values": lambda chip: chip.values,
    }
    return [
        [
            read_chip(chip)[0].tobytes(),
            chip.footprint,
            *(str(readers[held](chip)) for held in sorted(data.format.holds)),
        ]
        for chip in data.chips
    ]


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_is_read_from_the_store_as_from_disk(
    name: str, store: ObjectStore, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CHIPLINE_CACHE", str(tmp_path / "cache"))
    settings.cache_clear()
    local = written(tmp_path / "local", name)
    publication = Publication(store, folder + "/ours")
    records = []
    for path in sorted((tmp_path / "local").rglob("*")):
        if path.is_file():
            relative = path.relative_to(tmp_path / "local").as_posix()
            store.put(join(folder + "/theirs", relative), path.read_bytes())
            records.append(publication.put_file(relative, path.read_bytes()))
    part = publication.put_part("0", records)
    publication.finish(Manifest(kind="training-data", name="n", run_key="r", parts=[part]))
    inputs = [
        DataFolder(uri=f"{folder}/{side}", identity=f"{name}-{side}", name="n") for side in ("ours", "theirs")
    ]
    for item in open_inputs(store, inputs):
        assert item.folder.is_relative_to(tmp_path / "cache")
        assert item.metadata_format == name
        assert seen(item) == seen(local)
    # A chip that is not what the manifest says reaches no training.
    images = [record.path for record in records if record.path.endswith(".tif")]
    store.put(f"{folder}/ours/{images[0]}", b"x" * 500)
    with pytest.raises(StoreError, match="is not what"):
        open_inputs(store, [inputs[0].model_copy(update={"identity": "afresh"})])


def test_what_a_file_says_about_augmentation_is_part_of_the_plan(store: ObjectStore, folder: str) -> None:
    store.put(f"{folder}/data/images/0.png", b"a foreign folder: no chip is read yet")
    given = TrainParameters.model_validate(
        {"in_folder": [f"{folder}/data"], "output_name": "m", "model_type": "FCOS", "augmentation": "FILE"}
    )
    with pytest.raises(ValueError, match=r"there is no transforms\.json in "):
        make_plan(store, given)
    keys = []
    for degrees in (10, 20):
        text = json.dumps({"Training": {"rotate": {"degrees": degrees, "p": 0.5}}})
        store.put(f"{folder}/data/transforms.json", text.encode())
        plan = make_plan(store, given)
        assert plan.parameters.augmentation_parameters == [["rotate", f"{degrees};0.5"]]
        keys.append(plan.run_key)
    assert keys[0] != keys[1]
