"""What a label raster says of its own classes: attribute table, category names, colour table.

GDAL reads attribute tables and category names from wherever the format keeps them (the ``.aux.xml`` beside
the raster, the raster itself), but rasterio hands over neither. A VRT copy of the open raster holds both
as XML (https://gdal.org/en/stable/drivers/raster/vrt.html), without a pixel being read. ArcGIS's
``.vat.dbf`` is not known to this GDAL, and is read as the dBase table that it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from tasks.errors import LabelError
from tasks.labels.schema import Color
from tasks.store import ObjectStore

if TYPE_CHECKING:
    from rasterio.io import DatasetReader

TABLE_ENDING = ".vat.dbf"
# Lower case; the first text field of these names the classes where the table does not say which one does.
_NAME_FIELDS = ("class_name", "classname", "class_names", "class", "name", "label")
_VALUE_FIELD = "value"
_COLOR_FIELDS = ("red", "green", "blue")
_COUNT_FIELDS = ("count", "histogram")
# GDALRATFieldUsage of gdal.h.
_USAGES = {
    "1": "count",
    "2": "name",
    "3": "min",
    "4": "max",
    "5": "value",
    "6": "red",
    "7": "green",
    "8": "blue",
}
_INTEGER, _TEXT = "0", "2"  # GDALRATFieldType


@dataclass(frozen=True)
class AttributeTable:
    """One row per pixel value.

    Attributes:
        source: the file it was read from, for messages.
        fields: the columns by name, in the table's order, all of one length; a missing entry is None.
        values: the pixel value of each row.
        usage: the column of each known use: name, count, red, green, blue.
    """

    source: str
    fields: Mapping[str, Sequence[Any]]
    values: Sequence[int]
    usage: Mapping[str, str]


@dataclass(frozen=True)
class ClassNaming:
    """The classes that a raster names itself.

    Attributes:
        source: the file that names them.
        classes: class value by pixel value; pixel values that mean "no label" lead to 0.
        names: by class value.
        colors: by class value, as far as given.
    """

    source: str
    classes: Mapping[int, int]
    names: Mapping[int, str]
    colors: Mapping[int, Color] = field(default_factory=dict)


def side_table_uri(uri: str, store: ObjectStore) -> str | None:
    """The ``.vat.dbf`` that lies beside a raster; None where there is none."""
    if uri.startswith(("http://", "https://")):
        return None
    stem = uri.rpartition(".")[0]
    for name in dict.fromkeys(
        [uri + TABLE_ENDING, *([stem + TABLE_ENDING] if "/" not in uri[len(stem) :] else [])]
    ):
        if store.exists(name):
            return name
    return None


def read_attribute_table(uri: str, dataset: DatasetReader, store: ObjectStore) -> AttributeTable | None:
    """The attribute table of a raster's first band: ``.vat.dbf`` where there is one, otherwise GDAL's.

    Args:
        uri: the raster's address.
        dataset: the raster, open.

    Raises:
        LabelError: a table that cannot be read, or that has no column of whole pixel values.
    """
    side = side_table_uri(uri, store)
    if side is not None:
        return _from_dbase(side, store)
    band = _described(dataset)
    node = band.find("GDALRasterAttributeTable") if band is not None else None
    return None if node is None else _from_gdal(uri, node)


def read_category_names(dataset: DatasetReader) -> list[str]:
    """GDAL's category names of the first band: the name of pixel value 0, 1, 2 …; empty where not given."""
    band = _described(dataset)
    node = band.find("CategoryNames") if band is not None else None
    return [] if node is None else [(item.text or "").strip() for item in node.findall("Category")]


def read_color_table(dataset: DatasetReader) -> dict[int, Color]:
    """The first band's colour table; empty where there is none."""
    try:
        table = dataset.colormap(1)
    except ValueError:
        return {}
    return {int(value): (int(c[0]), int(c[1]), int(c[2])) for value, c in table.items()}


def naming_of_table(table: AttributeTable, classvalue_field: str | None) -> ClassNaming:
    """The classes of an attribute table.

    Args:
        table: the raster's table.
        classvalue_field: the column with the class value (any case); None takes the pixel value itself.

    Rows of class value 0 mean "no label". A row without a name whose count is 0 is no class: some programs
    write a row for each possible value.

    Raises:
        LabelError: no such column, class values that are no whole numbers from 0 on, one class value with
            two names.
    """
    column = None if classvalue_field is None else _column(table, classvalue_field)
    names_at, counts_at = _role(table, "name"), _role(table, "count")
    row_colors = _row_colors(table)
    classes: dict[int, int] = {}
    names: dict[int, str] = {}
    colors: dict[int, Color] = {}
    for row, pixel in enumerate(table.values):
        name = "" if names_at is None else _text(table.fields[names_at][row])
        if not name and counts_at is not None and _number(table.fields[counts_at][row]) == 0:
            continue
        value = pixel if column is None else _class_value(table, column, row)
        if classes.setdefault(pixel, value) != value:
            raise LabelError(
                f"The attribute table {table.source} gives the pixel value {pixel} the classes "
                f"{classes[pixel]} and {value}.",
                "Leave one row for each pixel value.",
            )
        if value == 0:
            continue
        if value < 0:
            raise LabelError(
                f"The attribute table {table.source} has the class value {value}.",
                "Number the classes from 1; the value 0 means 'no label'.",
            )
        if name and names.setdefault(value, name) != name:
            raise LabelError(
                f"The class value {value} of {table.source} carries several names: {names[value]}, {name}.",
                "Give all rows of a class value one name.",
            )
        color = row_colors[row]
        if color is not None:
            colors.setdefault(value, color)
    for value in classes.values():
        if value > 0:
            names.setdefault(value, str(value))
    return ClassNaming(table.source, classes, names, colors)


def naming_of_categories(uri: str, names: Sequence[str]) -> ClassNaming | None:
    """The classes of category names; None where no value above 0 has a name."""
    named = {value: name for value, name in enumerate(names) if value and name}
    if not named:
        return None
    return ClassNaming(uri, {0: 0, **{value: value for value in named}}, named)


def _described(dataset: DatasetReader) -> ElementTree.Element | None:
    """The first band of a VRT copy. GDAL wrote this XML just now, so it carries no foreign declarations."""
    import rasterio.shutil

    with tempfile.TemporaryDirectory(prefix="classes-") as folder:
        path = Path(folder) / "copy.vrt"
        rasterio.shutil.copy(dataset, str(path), driver="VRT")
        return ElementTree.fromstring(path.read_bytes()).find("VRTRasterBand")


def _from_gdal(uri: str, node: ElementTree.Element) -> AttributeTable | None:
    definitions = [
        (child.findtext("Name", ""), child.findtext("Type", ""), child.findtext("Usage", ""))
        for child in node.findall("FieldDefn")
    ]
    rows = [[cell.text for cell in row.findall("F")] for row in node.findall("Row")]
    if not definitions or not rows:
        return None
    fields: dict[str, list[Any]] = {}
    usage: dict[str, str] = {}
    for index, (name, kind, use) in enumerate(definitions):
        cells = [row[index] if index < len(row) else None for row in rows]
        fields[name] = cells if kind == _TEXT else [_number(cell) for cell in cells]
        if kind == _INTEGER:
            fields[name] = [None if cell is None else int(cell) for cell in fields[name]]
        role = _USAGES.get(use)
        if role is not None:
            usage.setdefault(role, name)
    start, step = node.get("Row0Min"), node.get("BinSize")
    if start is not None and step is not None:
        numbers = [float(start) + float(step) * row for row in range(len(rows))]
    else:
        numbers = fields.get(_value_column(uri, fields, usage), [])
    return AttributeTable(uri, fields, _whole(uri, numbers), usage)


def _value_column(uri: str, fields: Mapping[str, Sequence[Any]], usage: Mapping[str, str]) -> str:
    if "value" in usage:
        return usage["value"]
    for name in fields:
        if name.lower() == _VALUE_FIELD:
            return name
    if "min" in usage and fields[usage["min"]] == fields.get(usage.get("max", ""), fields[usage["min"]]):
        return usage["min"]
    raise LabelError(
        f"The attribute table of {uri} has no column of pixel values (it has {', '.join(fields)}).",
        "Add a column 'Value', or give a class schema file.",
    )


def _from_dbase(uri: str, store: ObjectStore) -> AttributeTable:
    import pyogrio.raw
    from pyogrio.errors import DataLayerError, DataSourceError

    with tempfile.TemporaryDirectory(prefix="classes-") as folder:
        path = Path(folder) / "table.dbf"
        store.download(uri, path)
        encoding = uri[: -len("dbf")] + "cpg"
        if store.exists(encoding):
            store.download(encoding, path.with_suffix(".cpg"))
        try:
            meta, _, _, columns = pyogrio.raw.read(path)
        except (DataSourceError, DataLayerError) as error:
            raise LabelError(
                f"The attribute table {uri} cannot be read: {error}.",
                "Build it again (Build Raster Attribute Table), or give a class schema file.",
            ) from error
    fields = {str(name): list(column.tolist()) for name, column in zip(meta["fields"], columns, strict=True)}
    return AttributeTable(uri, fields, _whole(uri, fields[_value_column(uri, fields, {})]), {})


def _whole(uri: str, numbers: Sequence[Any]) -> list[int]:
    values = []
    for cell in numbers:
        number = _number(cell)
        if number is None or number != int(number):
            raise LabelError(
                f"The attribute table of {uri} has the pixel value {cell!r}.",
                "Use a table with one row for each whole pixel value, or give a class schema file.",
            )
        values.append(int(number))
    return values


def _column(table: AttributeTable, wanted: str) -> str:
    if wanted in table.fields:
        return wanted
    for name in table.fields:
        if name.lower() == wanted.lower():
            return name
    raise LabelError(
        f"The attribute table {table.source} has no field {wanted!r}.",
        f"Set classvalue_field to one of the fields there: {', '.join(table.fields)}.",
    )


def _role(table: AttributeTable, role: str) -> str | None:
    if role in table.usage:
        return table.usage[role]
    wanted = {"name": _NAME_FIELDS, "count": _COUNT_FIELDS}.get(role, (role,))
    by_lower = {name.lower(): name for name in reversed(list(table.fields))}
    for name in wanted:
        found = by_lower.get(name)
        if found is None:
            continue
        if role != "name" or any(isinstance(cell, str) for cell in table.fields[found]):
            return found
    return None


def _row_colors(table: AttributeTable) -> list[Color | None]:
    """The colour of each row."""
    channels = [table.fields[name] for name in (_role(table, color) for color in _COLOR_FIELDS) if name]
    if len(channels) != len(_COLOR_FIELDS):
        return [None] * len(table.values)
    cells = [cell for channel in channels for cell in channel if _number(cell) is not None]
    # Some programs keep colours as fractions.
    fractions = any(isinstance(cell, float) and 0 < cell < 1 for cell in cells) and max(cells) <= 1
    colors: list[Color | None] = []
    for row in zip(*channels, strict=True):
        red, green, blue = (_number(cell) for cell in row)
        if red is None or green is None or blue is None:
            colors.append(None)
            continue
        scale = 255 if fractions else 1
        color = (round(red * scale), round(green * scale), round(blue * scale))
        colors.append(color if min(color) >= 0 and max(color) <= 255 else None)
    return colors


def _class_value(table: AttributeTable, column: str, row: int) -> int:
    cell = table.fields[column][row]
    number = _number(cell)
    if number is None or number != int(number):
        raise LabelError(
            f"The field {column!r} of {table.source} has {cell!r} where a class value is expected.",
            "Name a field of whole numbers in classvalue_field.",
        )
    return int(number)


def _text(cell: object) -> str:
    return cell.strip() if isinstance(cell, str) else ""


def _number(cell: object) -> float | None:
    try:
        number = float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return number if number == number and abs(number) != float("inf") else None
