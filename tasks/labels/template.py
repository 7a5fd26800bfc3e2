"""An empty layer to draw labels in: a GeoPackage that QGIS opens styled, with a list of the classes.

What QGIS reads is written from its sources and files it saved: the table ``layer_styles``
(``QgsOgrProviderMetadata::loadStyle`` takes the row whose ``f_table_schema`` is empty, whose table and
geometry column are the layer's, and which is ``useAsDefault``) and the style's XML
(``QgsVectorLayer::readSymbology``: ``renderer-v2``, ``fieldConfiguration``, ``defaults``, ``constraints``,
``constraintExpressions``). The allowed class values also stand in the GeoPackage's own schema extension
(OGC 12-128, annex F.9), and triggers hold them for every program that writes.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from tasks.errors import LabelError
from tasks.labels.schema import ClassSchema, LabelClass

LAYER = "labels"
"""Name of the layer in the template."""

_GEOMETRY = "geom"
_DOMAIN = "labels_classvalue"
_SCHEMA_EXTENSION = "http://www.geopackage.org/spec121/#extension_schema"
_DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
# QgsFieldConstraints: not null 1, expression 4; strength hard 1.
_NOT_NULL, _EXPRESSION, _HARD = 1, 4, 1

_TABLES = """
CREATE TABLE IF NOT EXISTS gpkg_data_columns (
  table_name TEXT NOT NULL, column_name TEXT NOT NULL, name TEXT, title TEXT, description TEXT,
  mime_type TEXT, constraint_name TEXT,
  CONSTRAINT pk_gdc PRIMARY KEY (table_name, column_name), CONSTRAINT gdc_tn UNIQUE (table_name, name));
CREATE TABLE IF NOT EXISTS gpkg_data_column_constraints (
  constraint_name TEXT NOT NULL, constraint_type TEXT NOT NULL, value TEXT,
  min NUMERIC, min_is_inclusive BOOLEAN, max NUMERIC, max_is_inclusive BOOLEAN, description TEXT,
  CONSTRAINT gdcc_ntv UNIQUE (constraint_name, constraint_type, value));
CREATE TABLE layer_styles (
  id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, f_table_catalog TEXT(256), f_table_schema TEXT(256),
  f_table_name TEXT(256), f_geometry_column TEXT(256), styleName TEXT(30), styleQML TEXT, styleSLD TEXT,
  useAsDefault BOOLEAN, description TEXT, owner TEXT(30), ui TEXT(30),
  update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ','now')));
"""


def write_label_template(schema: ClassSchema, path: Path, crs: str) -> None:
    """Write an empty GeoPackage with one polygon layer to draw labels of these classes in.

    The layer ``labels`` has the fields ``classvalue``, ``classname``, ``red``, ``green``, ``blue``. Only
    class values of the schema can be stored; name and colour follow from the value by themselves.

    Args:
        schema: the classes.
        path: the file to be made; its name ends in ``.gpkg``.
        crs: coordinate reference system of the layer, ``EPSG:…`` or WKT; the imagery's, best.

    Raises:
        LabelError: a file is there already, an ending other than ``.gpkg``, an unknown CRS, no classes.
    """
    if path.suffix.lower() != ".gpkg":
        raise LabelError(f"{path} is no name of a GeoPackage.", "Let the file's name end in .gpkg.")
    if path.exists():
        raise LabelError(
            f"{path} exists already, and labels may have been drawn in it.",
            "Choose another name, or move the file away.",
        )
    if not path.absolute().parent.is_dir():
        raise LabelError(f"The folder {path.absolute().parent} does not exist.", "Make it first.")
    if not len(schema):
        raise LabelError("There are no classes to draw.", "Name at least one class in the class schema file.")
    wkt = _checked_crs(crs)
    with tempfile.TemporaryDirectory(dir=path.absolute().parent, prefix=".template-") as folder:
        made = Path(folder) / path.name
        _write_layer(made, wkt)
        connection = sqlite3.connect(made)
        try:
            with connection:
                _write_tables(connection, schema)
        finally:
            connection.close()
        with path.open("xb") as file:  # never over a file that came to be meanwhile
            file.write(made.read_bytes())


def layer_style(schema: ClassSchema) -> str:
    """The style of a label layer as QGIS's QML: one category per class, a drop-down list, constraints."""
    root = Element("qgis", version="3.22.0", styleCategories="Symbology|Fields|Forms|AttributeTable")
    renderer = SubElement(root, "renderer-v2", type="categorizedSymbol", attr="classvalue", symbollevels="0")
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for number, item in enumerate(schema):
        SubElement(
            categories, "category", value=str(item.value), type="long", label=item.name, symbol=str(number),
            render="true",
        )  # fmt: skip
        _fill_symbol(symbols, str(number), item)
    fields = SubElement(root, "fieldConfiguration")
    widget = _edit_widget(fields, "classvalue", "ValueMap")
    choices = SubElement(SubElement(widget, "Option", type="Map"), "Option", name="map", type="List")
    for item in schema:
        choice = SubElement(choices, "Option", type="Map")
        SubElement(choice, "Option", name=item.name, type="QString", value=str(item.value))
    for name in ("classname", "red", "green", "blue"):
        SubElement(_edit_widget(fields, name, "Hidden"), "Option")
    aliases = SubElement(root, "aliases")
    SubElement(aliases, "alias", field="classvalue", name="Class")
    defaults = SubElement(root, "defaults")
    for name, value_of in _FOLLOWING.items():
        expression = _case('"classvalue"', schema, value_of)
        SubElement(defaults, "default", field=name, expression=expression, applyOnUpdate="1")
    constraints = SubElement(root, "constraints")
    SubElement(
        constraints, "constraint", field="classvalue", constraints=str(_NOT_NULL | _EXPRESSION),
        notnull_strength=str(_HARD), exp_strength=str(_HARD), unique_strength="0",
    )  # fmt: skip
    expressions = SubElement(root, "constraintExpressions")
    SubElement(
        expressions, "constraint", field="classvalue", exp=f'"classvalue" IN ({_listed(schema)})',
        desc="Choose one of the classes",
    )  # fmt: skip
    SubElement(root, "layerGeometryType").text = "2"
    ElementTree.indent(root)
    return _DOCTYPE + ElementTree.tostring(root, encoding="unicode") + "\n"


def _checked_crs(crs: str) -> str:
    import pyproj
    from pyproj.exceptions import CRSError

    try:
        return str(pyproj.CRS.from_user_input(crs).to_wkt())
    except CRSError as error:
        raise LabelError(
            f"The reference system {crs!r} is not known.", "Give it as EPSG:<code> or as WKT."
        ) from error


def _write_layer(path: Path, wkt: str) -> None:
    import geopandas
    import pandas

    columns = {
        "classvalue": pandas.Series(dtype="int32"),
        "classname": pandas.Series(dtype="str"),
        "red": pandas.Series(dtype="int32"),
        "green": pandas.Series(dtype="int32"),
        "blue": pandas.Series(dtype="int32"),
    }
    geopandas.GeoDataFrame(columns, geometry=[], crs=wkt).to_file(
        path,
        layer=LAYER,
        engine="pyogrio",
        driver="GPKG",
        geometry_type="MultiPolygon",
        GEOMETRY_NAME=_GEOMETRY,
    )


def _write_tables(connection: sqlite3.Connection, schema: ClassSchema) -> None:
    for statement in _TABLES.split(";\n"):
        connection.execute(statement)
    connection.execute(
        "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column,"
        " styleName, styleQML, styleSLD, useAsDefault, description, owner)"
        " VALUES ('', '', ?, ?, ?, ?, '', 1, ?, '')",
        (LAYER, _GEOMETRY, LAYER, layer_style(schema), "The classes, made by Chipline"),
    )
    connection.execute(
        "INSERT INTO gpkg_contents (table_name, data_type, identifier) VALUES (?, 'attributes', ?)",
        ("layer_styles", "layer_styles"),
    )
    for table in ("gpkg_data_columns", "gpkg_data_column_constraints"):
        connection.execute(
            "INSERT INTO gpkg_extensions (table_name, column_name, extension_name, definition, scope)"
            " VALUES (?, NULL, 'gpkg_schema', ?, 'read-write')",
            (table, _SCHEMA_EXTENSION),
        )
    connection.execute(
        "INSERT INTO gpkg_data_columns (table_name, column_name, name, title, constraint_name)"
        " VALUES (?, 'classvalue', 'classvalue', 'Class', ?)",
        (LAYER, _DOMAIN),
    )
    connection.executemany(
        "INSERT INTO gpkg_data_column_constraints (constraint_name, constraint_type, value, description)"
        " VALUES (?, 'enum', ?, ?)",
        [(_DOMAIN, str(item.value), item.name) for item in schema],
    )
    _write_triggers(connection, schema)


def _write_triggers(connection: sqlite3.Connection, schema: ClassSchema) -> None:
    listed = _listed(schema)
    following = ", ".join(
        f"{name} = {_case('NEW.classvalue', schema, value_of)}" for name, value_of in _FOLLOWING.items()
    )
    for event, suffix in (("INSERT", "insert"), ("UPDATE OF classvalue", "update")):
        connection.execute(
            f"CREATE TRIGGER {LAYER}_class_{suffix} BEFORE {event} ON {LAYER}"
            f" WHEN NEW.classvalue IS NULL OR NEW.classvalue NOT IN ({listed})"
            f" BEGIN SELECT RAISE(ABORT, 'classvalue must be the value of a class'); END"
        )
        connection.execute(
            f"CREATE TRIGGER {LAYER}_follow_{suffix} AFTER {event} ON {LAYER}"
            f" BEGIN UPDATE {LAYER} SET {following} WHERE fid = NEW.fid; END"
        )


def _fill_symbol(symbols: Element, name: str, item: LabelClass) -> None:
    symbol = SubElement(symbols, "symbol", name=name, type="fill", alpha="1", clip_to_extent="1")
    layer = SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "pass": "0", "locked": "0"})
    red, green, blue = item.color
    properties = {
        "color": f"{red},{green},{blue},90",  # the imagery stays visible below
        "style": "solid",
        "outline_color": f"{red},{green},{blue},255",
        "outline_style": "solid",
        "outline_width": "0.5",
        "outline_width_unit": "MM",
        "joinstyle": "bevel",
    }
    options = SubElement(layer, "Option", type="Map")
    for key, value in properties.items():
        SubElement(options, "Option", name=key, type="QString", value=value)
    for key, value in properties.items():
        SubElement(layer, "prop", k=key, v=value)  # what QGIS before 3.20 reads


def _edit_widget(fields: Element, name: str, kind: str) -> Element:
    field = SubElement(fields, "field", name=name, configurationFlags="None")
    return SubElement(SubElement(field, "editWidget", type=kind), "config")


def _listed(schema: ClassSchema) -> str:
    return ", ".join(str(value) for value in schema.values)


def _case(operand: str, schema: ClassSchema, value_of: Callable[[LabelClass], str]) -> str:
    """What follows from a class value, in words that SQLite and QGIS's expressions both understand."""
    cases = " ".join(f"WHEN {operand} = {item.value} THEN {value_of(item)}" for item in schema)
    return f"CASE {cases} END"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


_FOLLOWING: dict[str, Callable[[LabelClass], str]] = {
    "classname": lambda item: _quoted(item.name),
    "red": lambda item: str(item.color[0]),
    "green": lambda item: str(item.color[1]),
    "blue": lambda item: str(item.color[2]),
}
