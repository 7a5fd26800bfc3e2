"""The layer to draw in: what QGIS looks for, what every program is held to, what comes back as labels."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import geopandas
import pyogrio
import pytest
import shapely
from pyogrio.errors import FeatureError

from tasks.errors import LabelError
from tasks.labels.__main__ import main
from tasks.labels.schema import ClassSchema
from tasks.labels.template import LAYER, layer_style, write_label_template
from tasks.labels.vector import read_vector_labels

SCHEMA = ClassSchema.from_values(
    {1: 'Tree\'s "crown" & <shade>', 2: "Straße", 40: "Road"},
    {1: (10, 20, 30), 2: (0, 0, 0), 40: (255, 254, 253)},
)
SQUARE = shapely.box(500_000, 4_000_000, 500_010, 4_000_010)


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "draw.gpkg"
    write_label_template(SCHEMA, path, "EPSG:32612")
    return path


def draw(path: Path, classes: list[int | None], **fields: Any) -> None:
    frame = geopandas.GeoDataFrame(
        {"classvalue": classes, **fields}, geometry=[SQUARE] * len(classes), crs="EPSG:32612"
    )
    frame["classvalue"] = frame["classvalue"].astype("Int32")
    pyogrio.write_dataframe(frame, path, layer=LAYER, append=True, promote_to_multi=True)


def rows(path: Path, query: str) -> list[Any]:
    """What a program that is not GDAL gets from the file."""
    connection = sqlite3.connect(path)
    try:
        # The spatial index has triggers that call these for every update; the square has its place already.
        connection.create_function("ST_IsEmpty", 1, lambda _: 0)
        for name, value in (("MinX", 500_000), ("MaxX", 500_010), ("MinY", 4_000_000), ("MaxY", 4_000_010)):
            connection.create_function(f"ST_{name}", 1, lambda _, value=value: value)
        with connection:
            return connection.execute(query).fetchall()
    finally:
        connection.close()


def test_the_layer_is_empty_and_has_the_fields_of_training_samples(template: Path) -> None:
    info = pyogrio.read_info(template, layer=LAYER)
    assert list(info["fields"]) == ["classvalue", "classname", "red", "green", "blue"]
    assert info["crs"] == "EPSG:32612"
    assert info["geometry_type"] == "MultiPolygon"
    assert info["features"] == 0


def test_what_is_drawn_is_read_back_with_names_and_colours(template: Path) -> None:
    draw(template, [40, 1])
    labels = read_vector_labels(str(template))
    assert labels.values.tolist() == [40, 1]
    assert [(item.value, item.name, item.color) for item in labels.schema] == [
        (1, 'Tree\'s "crown" & <shade>', (10, 20, 30)),
        (40, "Road", (255, 254, 253)),
    ]


def test_a_changed_class_takes_its_name_along(template: Path) -> None:
    draw(template, [1], classname=["typed by hand"])
    rows(template, f"UPDATE {LAYER} SET classvalue = 2")
    assert rows(template, f"SELECT classvalue, classname, red, green, blue FROM {LAYER}") == [
        (2, "Straße", 0, 0, 0)
    ]


@pytest.mark.parametrize("value", [7, 0, -1, None])
def test_only_classes_of_the_schema_can_be_stored(template: Path, value: int | None) -> None:
    with pytest.raises(FeatureError, match="classvalue must be the value of a class"):
        draw(template, [value])
    assert rows(template, f"SELECT count(*) FROM {LAYER}") == [(0,)]


def test_an_existing_row_cannot_be_given_another_value(template: Path) -> None:
    draw(template, [1])
    with pytest.raises(sqlite3.IntegrityError, match="classvalue must be the value of a class"):
        rows(template, f"UPDATE {LAYER} SET classvalue = 3")


def test_qgis_finds_its_style(template: Path) -> None:
    # The question that QGIS asks (QgsOgrProviderMetadata::loadStyle).
    geometry = pyogrio.read_info(template, layer=LAYER)["geometry_name"]
    found = rows(
        template,
        "SELECT styleQML FROM layer_styles WHERE f_table_schema = '' AND useAsDefault"
        f" AND f_table_name = '{LAYER}' AND f_geometry_column = '{geometry}'",
    )
    assert [text for (text,) in found] == [layer_style(SCHEMA)]
    # QGIS reaches the table as a layer, so GDAL must list it.
    assert [LAYER, "MultiPolygon"] in pyogrio.list_layers(template).tolist()
    assert ["layer_styles", None] in pyogrio.list_layers(template).tolist()


def test_the_style_shows_every_class_in_its_colour() -> None:
    root = ElementTree.fromstring(layer_style(SCHEMA))
    renderer = root.find("renderer-v2")
    assert renderer is not None
    assert (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "classvalue")
    symbols = {symbol.get("name"): symbol for symbol in renderer.iterfind("symbols/symbol")}
    shown = {}
    for category in renderer.iterfind("categories/category"):
        layer = symbols[category.get("symbol")].find("layer")
        assert layer is not None
        assert layer.get("class") == "SimpleFill"
        options = {option.get("name"): option.get("value", "") for option in layer.iterfind("Option/Option")}
        assert options == {prop.get("k"): prop.get("v") for prop in layer.iterfind("prop")}
        shown[int(category.get("value", ""))] = (category.get("label"), options["outline_color"])
    assert shown == {
        item.value: (item.name, f"{item.color[0]},{item.color[1]},{item.color[2]},255") for item in SCHEMA
    }


def test_the_form_offers_the_classes_and_insists_on_one() -> None:
    root = ElementTree.fromstring(layer_style(SCHEMA))
    fields = {
        field.get("name"): field.find("editWidget") for field in root.iterfind("fieldConfiguration/field")
    }
    widget = fields["classvalue"]
    assert widget is not None
    assert widget.get("type") == "ValueMap"
    offered = widget.find("config/Option[@type='Map']/Option[@name='map']")
    assert offered is not None
    assert offered.get("type") == "List"
    choices = [choice for entry in offered for choice in entry]
    assert {c.get("name"): c.get("value") for c in choices} == {i.name: str(i.value) for i in SCHEMA}
    assert {
        name for name, other in fields.items() if other is not None and other.get("type") == "Hidden"
    } == {
        "classname",
        "red",
        "green",
        "blue",
    }
    constraint = root.find("constraints/constraint[@field='classvalue']")
    assert constraint is not None
    # Not null is bit 1, an expression bit 4; strength 1 is hard.
    assert int(constraint.get("constraints", "0")) == 5
    assert (constraint.get("notnull_strength"), constraint.get("exp_strength")) == ("1", "1")
    expression = root.find("constraintExpressions/constraint[@field='classvalue']")
    assert expression is not None
    assert expression.get("exp") == '"classvalue" IN (1, 2, 40)'
    defaults = {item.get("field"): item for item in root.iterfind("defaults/default")}
    assert set(defaults) == {"classname", "red", "green", "blue"}
    assert all(item.get("applyOnUpdate") == "1" for item in defaults.values())


def test_the_default_expressions_give_the_name(template: Path) -> None:
    # QGIS's CASE is SQLite's CASE, so SQLite can say what the expression gives.
    root = ElementTree.fromstring(layer_style(SCHEMA))
    expression = root.find("defaults/default[@field='classname']")
    assert expression is not None
    for item in SCHEMA:
        found = rows(
            template, f"SELECT {expression.get('expression')} FROM (SELECT {item.value} AS classvalue)"
        )
        assert found == [(item.name,)]


def test_the_geopackage_states_the_allowed_values(template: Path) -> None:
    allowed = rows(
        template,
        "SELECT value, gpkg_data_column_constraints.description FROM gpkg_data_columns"
        " JOIN gpkg_data_column_constraints USING (constraint_name)"
        f" WHERE table_name = '{LAYER}' AND column_name = 'classvalue' AND constraint_type = 'enum'",
    )
    assert sorted(allowed) == sorted((str(item.value), item.name) for item in SCHEMA)
    registered = rows(template, "SELECT table_name FROM gpkg_extensions WHERE extension_name = 'gpkg_schema'")
    assert set(registered) == {("gpkg_data_columns",), ("gpkg_data_column_constraints",)}
    assert rows(template, "PRAGMA integrity_check") == [("ok",)]
    assert rows(template, "PRAGMA foreign_key_check") == []


def test_many_classes_fit(tmp_path: Path) -> None:
    many = ClassSchema.from_values({value: f"class {value}" for value in range(1, 1200)})
    write_label_template(many, tmp_path / "many.gpkg", "EPSG:4326")
    draw(tmp_path / "many.gpkg", [1199])
    assert read_vector_labels(str(tmp_path / "many.gpkg")).schema.names == ("class 1199",)


def test_labels_are_never_overwritten(template: Path) -> None:
    before = template.read_bytes()
    with pytest.raises(LabelError, match="exists already"):
        write_label_template(SCHEMA, template, "EPSG:32612")
    assert template.read_bytes() == before
    assert [path.name for path in template.parent.iterdir() if path.is_file()] == [template.name]


@pytest.mark.parametrize(
    ("name", "crs", "schema", "says"),
    [
        ("draw.shp", "EPSG:32612", SCHEMA, "gpkg"),
        ("draw.gpkg", "EPSG:999999", SCHEMA, "not known"),
        ("draw.gpkg", "EPSG:32612", ClassSchema(()), "no classes"),
        ("nowhere/draw.gpkg", "EPSG:32612", SCHEMA, "does not exist"),
    ],
)
def test_what_cannot_be_made_is_refused(
    tmp_path: Path, name: str, crs: str, schema: ClassSchema, says: str
) -> None:
    with pytest.raises(LabelError, match=says):
        write_label_template(schema, tmp_path / name, crs)
    assert not (tmp_path / name).exists()


def test_the_command_line_makes_a_template_and_reads_classes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    classes = tmp_path / "classes.json"
    classes.write_text('{"classes": [{"value": 3, "name": "Palm", "color": "#010203"}]}')
    made = tmp_path / "draw.gpkg"
    assert main(["template", str(classes), str(made), "--crs", "EPSG:32612"]) == 0
    draw(made, [3])
    capsys.readouterr()
    assert main(["classes", str(made)]) == 0
    again = tmp_path / "again.json"
    again.write_text(capsys.readouterr().out)
    assert main(["check", str(again)]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["3", "#010203", "Palm"]
    assert main(["template", str(classes), str(made), "--crs", "EPSG:32612"]) == 1
    assert "exists already" in capsys.readouterr().err
