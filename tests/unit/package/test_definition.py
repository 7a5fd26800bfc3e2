"""Model definitions: what real files hold is read, and what we write is strict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.errors import PackageError
from tasks.package import parse_definition, read_definition

SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.emd"))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_a_definition_keeps_every_key_and_value(sample: Path) -> None:
    given = json.loads(sample.read_text())
    written = json.loads(read_definition(sample.read_text()).to_json())
    for key in ("ModelFile", "InferenceFunction"):
        if key in given:
            given[key] = given[key].replace(".\\", "")  # the one thing that is tidied: Windows paths
    if isinstance(given.get("ModelConfiguration"), dict):
        for key in ("Architecture", "Config"):
            if key in given["ModelConfiguration"]:
                tidied = given["ModelConfiguration"][key].replace(".\\", "").replace("\\", "/")
                given["ModelConfiguration"][key] = tidied
    assert written == given


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda path: path.stem)
def test_what_is_written_reads_back_the_same(sample: Path) -> None:
    first = read_definition(sample.read_text())
    assert read_definition(first.to_json()) == first


def test_all_samples_are_there() -> None:
    assert len(SAMPLES) == 19


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("ObjectionDetection", "ObjectDetection"),
        ("ClassifyPixels", "ImageClassification"),
        ("objectdetection", "ObjectDetection"),
        ("Instance Detection", "InstanceDetection"),
        ("llm", "llm"),
        ("SomethingElse", "SomethingElse"),
    ],
)
def test_model_types_get_their_canonical_spelling(spelling: str, canonical: str) -> None:
    assert read_definition(json.dumps({"ModelType": spelling})).model_type == canonical


def test_trailing_commas_and_a_byte_order_mark_are_tolerated() -> None:
    text = '\ufeff{"ModelType": "ObjectDetection", "ModelName": "a,]", "ExtractBands": [0, 1 , ],\n}'
    definition = read_definition(text)
    assert definition.extract_bands == [0, 1]
    assert definition.model_name == "a,]"


def test_older_class_keys_are_read_and_written_in_the_new_spelling() -> None:
    text = '{"Classes": [{"ClassValue": "3", "ClassName": 7, "Color": [1, 2, 3], "Note": "kept"}]}'
    classes = json.loads(read_definition(text).to_json())["Classes"]
    assert classes == [{"Value": 3, "Name": "7", "Color": [1, 2, 3], "Note": "kept"}]


@pytest.mark.parametrize(
    ("given", "builtin"),
    [
        ({"InferenceFunction": "[Functions]System\\DeepLearning\\ArcGISLearn\\X.py"}, "X.py"),
        ({"InferenceFunction": "[functions]System/DeepLearning/Y.py"}, "Y.py"),
        ({"Framework": "PyTorch", "ModelConfiguration": "FastaiSSD"}, "ObjectDetector.py"),
        ({"Framework": "Keras", "ModelConfiguration": {"Name": "KerasClassifier"}}, "ObjectClassifier.py"),
        (
            {"Framework": "Own", "ModelConfiguration": "thing", "ModelType": "ClassifyPixels"},
            "ImageClassifier.py",
        ),
        ({"InferenceFunction": ".\\Own.py", "Framework": "PyTorch", "ModelConfiguration": "FastaiSSD"}, None),
        ({"ModelType": "ObjectDetection"}, None),
    ],
)
def test_the_built_in_function_is_named(given: dict[str, object], builtin: str | None) -> None:
    assert read_definition(json.dumps(given)).builtin_function == builtin


def test_windows_paths_become_plain_ones() -> None:
    definition = read_definition('{"ModelFile": ".\\\\weights\\\\a.pth", "InferenceFunction": ".\\\\F.py"}')
    assert definition.model_file == "weights/a.pth"
    assert definition.inference_function == "F.py"


def test_every_wrong_field_is_named_and_the_rest_is_kept() -> None:
    definition, problems = parse_definition(
        '{"ModelName": "kept", "ImageHeight": "tall", "Classes": [{"Value": 1}], "BatchSize": 4}'
    )
    assert definition is not None
    assert definition.model_name == "kept"
    assert definition.batch_size == 4
    assert definition.image_height is None
    listed = "; ".join(problems)
    assert "ImageHeight" in listed
    assert "Name" in listed
    assert len(problems) == 2


@pytest.mark.parametrize("text", ["[]", "3", "{", "", '{"a": 1} b', "[" * 100_000])
def test_what_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(PackageError, match=r"\.emd"):
        read_definition(text)


def test_numbers_that_json_cannot_say_are_not_written() -> None:
    with pytest.raises(PackageError, match="finite"):
        read_definition('{"Loss": NaN}').to_json()


def test_a_colour_outside_its_range_is_refused() -> None:
    with pytest.raises(PackageError, match="colour"):
        read_definition('{"Classes": [{"Value": 1, "Name": "a", "Color": [0, 0, 256]}]}')
