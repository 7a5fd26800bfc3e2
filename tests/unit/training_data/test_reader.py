"""The tolerant reader: what real folders do, and what it must not swallow."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyproj import CRS

from tasks.errors import NotFoundError, TrainingDataError
from tasks.training_data import (
    layout,
    open_training_data,
    pascal_voc,
    read_boxes,
    read_chip_image,
    read_class_mask,
)
from tasks.training_data.classified_tiles import encode_label
from tasks.training_data.images import encode_image

TILE = 16
CELL = 0.5
PIXELS = np.random.default_rng(3).integers(0, 256, (3, TILE, TILE), dtype=np.uint8)
MASK = np.zeros((TILE, TILE), np.uint8)
MASK[2:6, 3:9] = 1

Folder = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Writes a folder in the old spelling of ArcGIS 2.1, with gaps in the numbering."""

    def _write(
        metadata_format: str,
        *,
        definition: dict[str, Any] | None = None,
        stats: dict[str, Any] | None = None,
        numbers: tuple[int, ...] = (0, 7, 42),
        name: str = "1",
    ) -> Path:
        images, labels = tmp_path / "images", tmp_path / "labels"
        images.mkdir()
        labels.mkdir()
        lines = []
        for number in numbers:
            stem = layout.chip_stem(number)
            transform = (CELL, 0.0, 1000.0 + number * TILE * CELL, 0.0, -CELL, 2000.0)
            (images / f"{stem}.jpg").write_bytes(encode_image(PIXELS, "JPEG", transform, None))
            (images / f"{stem}.jpg.aux.xml").write_text("<PAMDataset/>")
            (images / f"{stem}.jgw").write_bytes(layout.world_file(transform))
            if metadata_format == layout.CLASSIFIED_TILES:
                (labels / f"{stem}.tif").write_bytes(
                    encode_label(MASK, transform, CRS("EPSG:32612").to_wkt())
                )
            else:
                xml = pascal_voc.encode_annotation(
                    f"{stem}.jpg", PIXELS.shape, [(0, 3, 2, 9, 6)], source="ArcGIS Pro 2.1"
                )
                (labels / f"{stem}.xml").write_bytes(
                    xml.replace(b"<name>0<", f"<name>{name}<".encode()).replace(b"\n", b"\r\n")
                )
            suffix = layout.LABEL_EXTENSIONS[metadata_format]
            lines.append(layout.map_line(f"images/{stem}.jpg", f"labels/{stem}{suffix}") + "\r\n")
        (tmp_path / layout.MAP).write_bytes("".join(lines).encode())
        (tmp_path / layout.DEFINITION).write_text(
            json.dumps(
                definition
                if definition is not None
                else {
                    "Framework": "e.g. CNTK",
                    "ImageHeight": "e.g. 256",
                    "ExtractBands": "e.g. [0, 1, 2]",
                    "Classes": [{"ClassValue": 1, "ClassName": "Palm", "Color": [1, 2, 3]}],
                }
            )
        )
        (tmp_path / layout.ACCUMULATED_STATS).write_text(
            json.dumps(
                stats
                if stats is not None
                else {
                    "NumBands": 3,
                    "MetaDataMode": metadata_format,
                    "BandStatsState": [{"Min": 1, "Max": 9, "Num": 4, "M1": 5.0, "M2": 16.0}] * 3,
                }
            )
        )
        return tmp_path

    return _write


def test_an_old_export_is_read_with_gaps_side_files_and_placeholders(folder: Folder) -> None:
    data = open_training_data(folder(layout.PASCAL_VOC))
    assert [chip.stem for chip in data.chips] == ["000000000", "000000007", "000000042"]
    assert data.metadata_format == "PASCAL_VOC_rectangles"
    assert data.classes.names == ("Palm",)
    assert data.tile_size == (TILE, TILE)
    assert data.band_names == ("Red", "Green", "Blue")
    assert (data.band_stats[0].mean, data.band_stats[0].std) == (5.0, 2.0)
    assert data.cell_size == pytest.approx((CELL, CELL))
    assert data.wkid is None
    assert data.chips[1].footprint == pytest.approx((1056.0, 1992.0, 1064.0, 2000.0))
    assert read_boxes(data.chips[0]) == [(1, 3.0, 2.0, 9.0, 6.0)]
    assert read_chip_image(data.chips[0]).shape == (3, TILE, TILE)


def test_classified_tiles_are_read(folder: Folder) -> None:
    data = open_training_data(folder(layout.CLASSIFIED_TILES))
    np.testing.assert_array_equal(read_class_mask(data.chips[0]), MASK)


def test_the_newer_keys_of_a_definition(folder: Folder) -> None:
    path = folder(
        layout.CLASSIFIED_TILES,
        definition={
            "MetaDataMode": "Classified_Tiles",
            "Classes": [{"Value": 1, "Name": "Palm", "Color": [-1, -1, -1]}],
            "InputRastersProps": {"BandNames": ["a", "b", "c"]},
            "AllTilesStats": [{"BandName": "a", "Min": 0, "Max": 200, "Mean": 7.5, "StdDev": 2}] * 3,
            "MinCellSize": {"x": 0.25, "y": 0.25, "spatialReference": {"wkid": 102100, "latestWkid": 3857}},
        },
    )
    (path / layout.STATS).unlink(missing_ok=True)
    data = open_training_data(path)
    assert data.band_names == ("a", "b", "c")
    assert data.band_stats[2].mean == 7.5
    assert data.cell_size == (0.25, 0.25)
    assert data.wkid == 3857


def test_statistics_that_are_nowhere_are_taken_from_the_chips(folder: Folder) -> None:
    data = open_training_data(folder(layout.PASCAL_VOC, stats={"MetaDataMode": "PASCAL_VOC_rectangles"}))
    pixels = np.stack([read_chip_image(chip) for chip in data.chips]).astype(float)
    assert data.band_stats[1].mean == pytest.approx(pixels[:, 1].mean())
    assert data.band_stats[1].std == pytest.approx(pixels[:, 1].std())


def test_one_side_file_is_enough_where_it_says_all(folder: Folder) -> None:
    path = folder(layout.PASCAL_VOC)
    definition = json.loads((path / layout.DEFINITION).read_text())
    definition["MetaDataMode"] = "PASCAL_VOC_rectangles"
    (path / layout.DEFINITION).write_text(json.dumps(definition))
    (path / layout.ACCUMULATED_STATS).unlink()
    (path / layout.MAP).unlink()
    assert len(open_training_data(path).chips) == 3


def test_a_chip_without_label_is_dropped_and_counted(folder: Folder) -> None:
    path = folder(layout.PASCAL_VOC)
    (path / "labels" / "000000007.xml").unlink()
    data = open_training_data(path)
    assert [chip.stem for chip in data.chips] == ["000000000", "000000042"]
    assert data.dropped == 1


def test_class_names_in_place_of_values_are_understood(folder: Folder) -> None:
    data = open_training_data(folder(layout.PASCAL_VOC, name="Palm"))
    assert read_boxes(data.chips[0])[0][0] == 1


def test_an_object_of_an_unknown_class_is_an_error_and_not_lost(folder: Folder) -> None:
    data = open_training_data(folder(layout.PASCAL_VOC, name="2"))
    with pytest.raises(TrainingDataError, match="class '2'"):
        read_boxes(data.chips[0])


def test_the_dummy_box_of_an_empty_chip_is_no_box(folder: Folder) -> None:
    path = folder(layout.PASCAL_VOC)
    xml = pascal_voc.encode_annotation("0.jpg", (3, 16, 16), [(1, 0, 0, 0, 0)], source="x")
    (path / "labels" / "000000000.xml").write_bytes(xml)
    assert read_boxes(open_training_data(path).chips[0]) == []


def test_a_mask_value_without_class_is_an_error(folder: Folder) -> None:
    path = folder(layout.CLASSIFIED_TILES)
    data = open_training_data(path)
    assert data.chips[0].label is not None
    data.chips[0].label.write_bytes(encode_label(MASK * 9, (1, 0, 0, 0, -1, 0), None))
    with pytest.raises(TrainingDataError, match=r"values \[9\]"):
        read_class_mask(data.chips[0])


def test_what_is_no_training_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        open_training_data(tmp_path / "missing")
    with pytest.raises(TrainingDataError, match="holds neither"):
        open_training_data(tmp_path)


def test_a_format_that_we_do_not_know_is_refused_with_those_we_do(folder: Folder) -> None:
    path = folder(layout.PASCAL_VOC, stats={"MetaDataMode": "Point_Clouds"})
    with pytest.raises(TrainingDataError, match=r"Point_Clouds.*Classified_Tiles, .*PASCAL_VOC_rectangles"):
        open_training_data(path)


def test_side_files_that_contradict_the_chips_are_refused(folder: Folder) -> None:
    path = folder(layout.PASCAL_VOC, stats={"MetaDataMode": "PASCAL_VOC_rectangles", "NumBands": 4})
    with pytest.raises(TrainingDataError, match="says 4 bands"):
        open_training_data(path)


def test_a_folder_without_any_labelled_chip_is_refused(folder: Folder) -> None:
    path = folder(layout.PASCAL_VOC)
    for label in (path / "labels").iterdir():
        label.unlink()
    with pytest.raises(TrainingDataError, match="3 images without one"):
        open_training_data(path)
