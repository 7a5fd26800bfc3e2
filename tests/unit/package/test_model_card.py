"""The model card: what a person reads who opens the zip."""

from __future__ import annotations

import json
from typing import Any

from tasks.package import read_definition
from tasks.package.contract import check_contract
from tasks.package.model_card import TrainingFacts, model_card
from tasks.training_data import BandStats

SIZE = {"x": 0.5, "y": 0.5, "spatialReference": {"wkid": 32612, "latestWkid": 32612}}
METRICS: dict[str, Any] = {
    "f1_score": 0.7,
    "threshold": 0.42,
    "epochs": 12,
    "batch_size": 4,
    "precision": "32-true",
    "per_class": {
        "Tree | tall": {"ap": 0.61, "objects": 900.0},
        "Bush": {"ap": float("nan"), "objects": 4.0},
    },
    "intervals": {
        "level": 0.95,
        "blocks": 7,
        "Tree | tall": {"ap": [0.55, 0.66]},
        "Bush": {"ap": [None, None]},
        "all": {"f1": [0.6, 0.8]},
    },
    "chips": {"train": 80},
    "device": "cpu",
}
FACTS = TrainingFacts(
    data=(("west", "abc123"), ("south", "def456")),
    metadata_format="PASCAL_VOC_rectangles",
    bands=(BandStats("Red", 3, 250, 101.5, 40.25),),
    chips={"train": 80, "validation": 20, "dropped": 6},
    area=(500_000, 4_900_000, 501_000, 4_900_600),
    crs="EPSG:32612",
)


def card(metrics: dict[str, Any] = METRICS, facts: TrainingFacts | None = FACTS) -> str:
    definition = {
        "ModelType": "ObjectDetection",
        "ExtractBands": [0],
        "Bands": ["Red"],
        "Classes": [{"Value": 1, "Name": "Tree | tall", "Color": [0, 128, 0]}, {"Value": 4, "Name": "Bush"}],
        "MinCellSize": SIZE,
        "MaxCellSize": SIZE,
        "Chipline": {"Metrics": metrics},
    }
    return model_card("trees", read_definition(json.dumps(definition)), facts)


def test_it_says_what_where_how_good_and_what_not() -> None:
    text = card()
    for line in (
        "finds objects, each as a box",
        "| 1 | Tree \\| tall | 0, 128, 0 |",
        "| data set west | abc123 |",
        "| chips: validation | 20 |",
        "| area EPSG:32612 | x 500000 to 501000, y 4900000 to 4900600 |",
        "| Red | 3 | 250 | 101.5 | 40.25 |",
        "In brackets: 95% intervals, by a bootstrap over 7 blocks of ground.",
        "| f1 score | 0.700 (0.600 to 0.800) |",
        "| Tree \\| tall | 0.610 (0.550 to 0.660) | 900 |",
        "| Bush | – | 4 |",
        "The class Bush has only 4 objects",
        "cells of 0.5 x 0.5 (EPSG:32612)",
        "below a confidence of 0.42",
    ):
        assert line in text
    assert not any(word in text for word in ("epochs", "batch size", "32-true"))
    assert card() == text


def test_what_is_not_known_is_said() -> None:
    text = card({}, None)
    assert "Not stated." in text
    assert "Nothing was measured." in text
    assert "No intervals" in card({"accuracy": 0.5}, None)


def test_the_chips_statistics_are_what_imagery_is_compared_with() -> None:
    from tasks.imagery import BandSample, RasterInfo, RasterSample

    definition = read_definition(
        json.dumps(
            {"ExtractBands": [0], "IsImageNetNormalization": True, "AllTilesStats": FACTS.tile_statistics}
        )
    )
    raster = RasterInfo(
        uri="a.tif",
        width=1,
        height=1,
        band_count=1,
        dtype="uint8",
        nodata=0,
        crs_wkt=None,
        transform=(1, 0, 0, 0, -1, 0),
        block_shape=(1, 1),
        band_names=("Red",),
        colorinterp=("red",),
        identity="",
    )
    sample = RasterSample((BandSample(0, 200, 101.5 + 40.25, 40.25),), 1, 0)
    assert check_contract(definition, raster, sample=sample).drift == 1
