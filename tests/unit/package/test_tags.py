"""What the registry says about a version."""

from __future__ import annotations

import json

from tasks.package import read_definition
from tasks.package.tags import TRAINING_DATA_TAG, lineage_tags, registry_tags


def test_the_definition_gives_the_tags() -> None:
    definition = {
        "ModelType": "ClassifyPixels",
        "Framework": "PyTorch",
        "ExtractBands": [2, 0],
        "Bands": ["Red", "NIR"],
        "MinCellSize": {"x": 0.5, "y": 0.5, "spatialReference": {"wkid": 32612}},
        "MaxCellSize": {"x": 1, "y": 1, "spatialReference": {"wkid": 32612}},
        "Classes": [{"Value": 3, "Name": "Tree"}, {"Value": 4, "Name": "x" * 3000}],
    }
    tags = registry_tags(read_definition(json.dumps(definition)))
    assert len(tags.pop("chipline.classes")) == 1000
    assert tags == {
        "chipline.type": "ImageClassification",
        "chipline.framework": "PyTorch",
        "chipline.bands": "2, 0 (Red, NIR)",
        "chipline.cell_size": "0.5 x 0.5 (EPSG:32612) to 1 x 1 (EPSG:32612)",
    }
    assert registry_tags(read_definition("{}")) == {}


def test_the_training_data_s_manifests_are_named_as_far_as_a_tag_holds_them() -> None:
    one = json.loads(lineage_tags([("s3://b/training-data/a/k1/", "k1")])[TRAINING_DATA_TAG])
    assert one == [{"manifest": "s3://b/training-data/a/k1/manifest.json", "identity": "k1"}]
    text = lineage_tags([(f"s3://b/training-data/{number:064}", "k") for number in range(20)])[
        TRAINING_DATA_TAG
    ]
    assert len(text) <= 1000
    listed = json.loads(text)
    assert listed[-1] == {"and": f"{20 - len(listed) + 1} more"}
