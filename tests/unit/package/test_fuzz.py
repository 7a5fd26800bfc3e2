"""Mutated definitions and packages: a valid reading or a clear error, and no file outside the work folder."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import PackageError
from tasks.package import open_package, parse_definition, read_definition
from tasks.package.card import card_markdown, card_text, problems_text
from tasks.package.checks import CHECKS
from tasks.package.examine import examine_package

SAMPLES = [path.read_text() for path in sorted((Path(__file__).parent / "samples").glob("*.emd"))]
KEYS = sorted({key for text in SAMPLES for key in read_definition(text).to_dict()})
STRANGE = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.floats(allow_nan=True),
    st.text(max_size=30),
    st.sampled_from(
        [
            "",
            ".",
            "..",
            "/",
            "../x",
            "/etc/passwd",
            "a/../../b",
            "C:\\x",
            "\0",
            "a" * 5000,
            "\ud800",
            "[Functions]",
            "x.py/",
        ]
    ),
)
VALUES = st.recursive(
    STRANGE,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["Value", "Name", "Color", "x", "y", "wkid", "", "Config"]), inner),
    ),
    max_leaves=8,
)
BYTES_CHANGE = st.tuples(st.integers(0, 1 << 16), st.binary(max_size=6), st.integers(0, 6))


def _weights() -> bytes:
    stream = io.BytesIO()
    torch.save({"layer.weight": torch.arange(6.0)}, stream)
    return stream.getvalue()


WEIGHTS = _weights()
FUNCTION = (
    b'class F:\n    def getParameterInfo(self):\n        return [{"name": "a", "dataType": "numeric"}]\n'
)
BASE: dict[str, Any] = {
    "ModelType": "ObjectDetection",
    "InferenceFunction": "F.py",
    "ModelFile": "w.pth",
    "Classes": [{"Value": 1, "Name": "Tree", "Color": [0, 160, 0]}],
}


@st.composite
def definitions(draw: st.DrawFn) -> bytes:
    """Texts of definitions: samples with keys replaced, then bytes changed."""
    loaded = json.loads(
        draw(st.sampled_from([json.dumps(BASE), *[text for text in SAMPLES if _plain(text)]]))
    )
    for key, value in draw(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3)).items():
        loaded[key] = value
    text = json.dumps(loaded, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
    return changed(text, draw(st.lists(BYTES_CHANGE, max_size=2)))


def _plain(text: str) -> bool:
    try:
        json.loads(text)
    except ValueError:
        return False
    return True


def changed(data: bytes, changes: list[tuple[int, bytes, int]]) -> bytes:
    """The data with bytes put in, replaced or cut out at some places."""
    for place, put, cut in changes:
        at = place % (len(data) + 1)
        data = data[:at] + put + data[at + cut :]
    return data


@st.composite
def packages(draw: st.DrawFn) -> bytes:
    """Files of packages: members of any name and content, then bytes of the zip changed."""
    members: list[tuple[str, bytes]] = [
        ("a.emd", draw(st.one_of(st.just(json.dumps(BASE).encode()), definitions()))),
        ("F.py", changed(FUNCTION, draw(st.lists(BYTES_CHANGE, max_size=1)))),
        ("w.pth", changed(WEIGHTS, draw(st.lists(BYTES_CHANGE, max_size=2)))),
    ]
    names = st.one_of(
        st.sampled_from(
            [
                "../x",
                "/x",
                "b.emd",
                "..emd",
                "...emd",
                "0.emd/",
                "a.emd/x",
                ".emd",
                "F.py",
                "d/",
                "d",
                "D",
                "..",
                "a\\b",
                "c:x",
            ]
        ),
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
    )
    members += draw(st.lists(st.tuples(names, st.binary(max_size=20)), max_size=2))
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile itself warns of duplicates
        for name, content in members:
            kind = draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2]))
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=kind)
    return changed(stream.getvalue(), draw(st.lists(BYTES_CHANGE, max_size=3)))


def check_definition(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    definition, problems = parse_definition(text)
    if problems:
        with pytest.raises(PackageError, match="docs/formats"):
            read_definition(text)
    if definition is None:
        assert problems
        return
    try:
        written = definition.to_json()
    except PackageError:
        return  # not a finite number
    assert read_definition(written).to_json() == written


def check_package(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "work"
        work.mkdir()
        dlpk = work / "a.dlpk"
        dlpk.write_bytes(data)
        examination = examine_package(dlpk)
        said = [CHECKS.index(item.check) for item in examination.problems]
        assert said == sorted(said)
        assert all(item.text and item.remedy.endswith(".") for item in examination.problems)
        card_text(examination).encode()
        card_markdown(examination).encode()
        problems_text(examination.problems).encode()
        json.dumps(examination.to_dict())
        if examination.problems:
            with pytest.raises(PackageError) as refused:
                open_package(dlpk, work / "cache")
            for item in examination.problems:
                assert item.text in str(refused.value)
        else:
            package = open_package(dlpk, work / "cache")
            assert package.digest == examination.digest
            if package.function_path is not None:
                assert package.function_path.is_relative_to(package.folder)
        assert sorted(entry.name for entry in Path(folder).iterdir()) == ["work"]
        assert {entry.name for entry in work.iterdir()} <= {"a.dlpk", "cache"}
        home = work / "cache"
        found = {entry.name for entry in home.iterdir()} if home.is_dir() else set()
        assert found <= {examination.digest}


quick = settings(max_examples=120, deadline=5000, suppress_health_check=list(HealthCheck), derandomize=True)
thorough = settings(max_examples=5000, deadline=20_000, suppress_health_check=list(HealthCheck))


@quick
@given(definitions())
def test_a_mutated_definition_is_read_or_refused(data: bytes) -> None:
    check_definition(data)


@quick
@given(packages())
def test_a_mutated_package_is_opened_or_refused(data: bytes) -> None:
    check_package(data)


@pytest.mark.slow
@thorough
@given(definitions())
def test_five_thousand_mutated_definitions(data: bytes) -> None:
    check_definition(data)


@pytest.mark.slow
@thorough
@given(packages())
def test_five_thousand_mutated_packages(data: bytes) -> None:
    check_package(data)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"x": ' + "9" * 5000 + "}", "not JSON"),
        ('{"x": ' + "[" * 200 + "]" * 200 + "}", "nests more than"),
        ("[" * 100_000, "not JSON"),
        ('{"x": "\\ud800"}', "surrogate"),
    ],
)
def test_json_that_no_program_can_handle_is_said(text: str, said: str) -> None:
    definition, problems = parse_definition(text)
    assert definition is None
    assert said in problems[0]


def test_a_configuration_without_a_path_is_kept() -> None:
    text = json.dumps({**BASE, "ModelConfiguration": {"Name": "MaskRCNN", "Config": None}})
    assert read_definition(text).to_dict()["ModelConfiguration"]["Config"] is None


def test_a_member_without_a_name_is_said() -> None:
    stream = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(stream, "w") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("a.emd", json.dumps(BASE))
        archive.writestr(zipfile.ZipInfo("\0x"), b"")  # read again as the empty name
        archive.writestr(zipfile.ZipInfo("\0y"), b"")
    check_package(stream.getvalue())


def test_a_coordinate_system_without_a_number_has_no_number() -> None:
    size = {"x": 1, "y": 1, "spatialReference": {"wkid": "local"}}
    definition = read_definition(json.dumps({**BASE, "MinCellSize": size}))
    assert definition.min_cell_size is not None
    assert definition.min_cell_size.wkid is None
