"""Attribute tables as ArcGIS, QGIS and GDAL write them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pandas
import pyogrio
import pytest
import rasterio
import rasterio.shutil

from tasks.errors import LabelError
from tasks.labels.raster import is_raster_labels, raster_classes
from tasks.labels.schema import palette_color
from tasks.settings import settings

Writer = Callable[..., str]
Table = Sequence[tuple[str, int, int, Sequence[Any]]]  # name, GDAL type, GDAL usage, cells

INTEGER, REAL, TEXT = 0, 1, 2
GENERIC, COUNT, NAME, LEAST, MOST, VALUE, RED, GREEN, BLUE = range(9)


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    def _write(values: Any = None, *, name: str = "labels.tif", driver: str = "GTiff", **profile: Any) -> str:
        pixels = np.array([[1, 2], [0, 2]], dtype=np.uint8) if values is None else values
        path = tmp_path / name
        with rasterio.open(
            path, "w", driver=driver, width=pixels.shape[1], height=pixels.shape[0], count=1,
            dtype=pixels.dtype, crs="EPSG:32612", transform=rasterio.Affine(1, 0, 7, 0, -1, 9), **profile,
        ) as dataset:  # fmt: skip
            dataset.write(pixels, 1)
        return str(path)

    return _write


def write_gdal_table(
    raster: str, table: Table, *, attributes: str = "", categories: Sequence[str] = ()
) -> None:
    """The ``.aux.xml`` that GDAL and QGIS write beside a raster."""
    fields = "".join(
        f'<FieldDefn index="{i}"><Name>{name}</Name><Type>{kind}</Type><Usage>{use}</Usage></FieldDefn>'
        for i, (name, kind, use, _) in enumerate(table)
    )
    lines = zip(*(cells for *_, cells in table), strict=True)
    rows = "".join(
        f'<Row index="{i}">' + "".join(f"<F>{escape(str(cell))}</F>" for cell in line) + "</Row>"
        for i, line in enumerate(lines)
    )
    names = "".join(f"<Category>{escape(name)}</Category>" for name in categories)
    rat = f"<GDALRasterAttributeTable {attributes}>{fields}{rows}</GDALRasterAttributeTable>" if table else ""
    listed = f"<CategoryNames>{names}</CategoryNames>" if categories else ""
    text = f'<PAMDataset><PAMRasterBand band="1">{listed}{rat}</PAMRasterBand></PAMDataset>'
    Path(raster + ".aux.xml").write_text(text)


def write_dbase_table(path: str, **columns: Any) -> None:
    """The ``.vat.dbf`` that ArcGIS writes beside a raster."""
    pyogrio.write_dataframe(pandas.DataFrame(columns), path, driver="ESRI Shapefile", encoding="UTF-8")


def classes(raster: str, classvalue_field: str | None = None) -> list[tuple[int, str, tuple[int, int, int]]]:
    schema = raster_classes([raster], classvalue_field=classvalue_field)
    return [(item.value, item.name, item.color) for item in schema]


COLORS: Table = [
    ("Red", INTEGER, RED, [1, 4]),
    ("Green", INTEGER, GREEN, [2, 5]),
    ("Blue", INTEGER, BLUE, [3, 6]),
]


def test_a_gdal_table_names_and_colours_the_classes(write: Writer) -> None:
    raster = write()
    table: Table = [("V", INTEGER, VALUE, [1, 2]), ("What", TEXT, NAME, ["Tree & bush", "Straße"]), *COLORS]
    write_gdal_table(raster, table)
    assert classes(raster) == [(1, "Tree & bush", (1, 2, 3)), (2, "Straße", (4, 5, 6))]


@pytest.mark.parametrize("driver", ["GTiff", "PNG"])
def test_the_tables_own_words_go_without_usages(write: Writer, driver: str) -> None:
    raster = write(driver=driver, name="labels.any")
    write_gdal_table(
        raster,
        [
            ("OID", INTEGER, GENERIC, [0, 1]),
            ("VALUE", INTEGER, GENERIC, [1, 2]),
            ("Class_name", TEXT, 0, ["A", "B"]),
        ],
    )
    assert classes(raster) == [(1, "A", palette_color(0)), (2, "B", palette_color(1))]


@pytest.mark.parametrize("name", ["Class_name", "ClassName", "Classname", "CLASS", "Name", "label"])
def test_an_arcgis_table_names_and_colours_the_classes(write: Writer, name: str) -> None:
    raster = write()
    write_dbase_table(
        raster + ".vat.dbf",
        **{
            "Value": [1, 2],
            "Count": [1.0, 2.0],
            name: ["Tree", "Straße"],
            "Red": [1, 4],
            "Green": [2, 5],
            "Blue": [3, 6],
        },
    )
    assert classes(raster) == [(1, "Tree", (1, 2, 3)), (2, "Straße", (4, 5, 6))]


def test_the_arcgis_table_goes_before_gdals(write: Writer) -> None:
    raster = write()
    write_gdal_table(raster, [("Value", INTEGER, VALUE, [1, 2]), ("Name", TEXT, NAME, ["old", "older"])])
    write_dbase_table(raster + ".vat.dbf", Value=[1, 2], Class_name=["A", "B"])
    assert [name for _, name, _ in classes(raster)] == ["A", "B"]


def test_a_table_named_after_the_stem_is_found(write: Writer) -> None:
    raster = write()
    write_dbase_table(raster.removesuffix(".tif") + ".vat.dbf", Value=[1, 2], Class_name=["A", "B"])
    assert [name for _, name, _ in classes(raster)] == ["A", "B"]


@pytest.mark.parametrize("source", ["gdal", "dbase"])
def test_colours_as_fractions_are_understood(write: Writer, source: str) -> None:
    raster = write()
    shares = {"Red": [1.0, 0.0], "Green": [0.5, 0.0], "Blue": [0.0, 0.2]}
    if source == "gdal":
        # GDAL itself cuts a column of colours to whole numbers if its usage says what it is.
        rest = [(name, REAL, GENERIC, cells) for name, cells in shares.items()]
        write_gdal_table(raster, [("Value", INTEGER, VALUE, [1, 2]), *rest])
    else:
        write_dbase_table(raster + ".vat.dbf", Value=[1, 2], **shares)
    assert [color for *_, color in classes(raster)] == [(255, 128, 0), (0, 0, 51)]


def test_a_table_inside_the_raster_is_read(write: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    raster = write()
    write_gdal_table(raster, [("Value", INTEGER, VALUE, [0, 1, 2]), ("What", TEXT, NAME, ["none", "A", "B"])])
    inside = raster.replace(".tif", ".img")
    with rasterio.open(raster) as dataset:
        rasterio.shutil.copy(dataset, inside, driver="HFA")
    Path(inside + ".aux.xml").unlink(missing_ok=True)
    assert not is_raster_labels(inside)
    monkeypatch.setenv("CHIPLINE_GDAL_DRIVERS", '["GTiff", "HFA"]')
    settings.cache_clear()
    assert is_raster_labels(inside)
    assert [(value, name) for value, name, _ in classes(inside)] == [(1, "A"), (2, "B")]


def test_a_histogram_of_bins_is_a_table_too(write: Writer) -> None:
    raster = write()
    write_gdal_table(
        raster,
        [("Histogram", REAL, COUNT, [1, 1, 2, 0]), ("Names", TEXT, NAME, ["none", "Tree", "", ""])],
        attributes='Row0Min="0" BinSize="1"',
    )
    # Value 2 occurs and has no name; value 3 has neither pixels nor a name.
    assert [(value, name) for value, name, _ in classes(raster)] == [(1, "Tree"), (2, "2")]


def test_the_value_zero_is_no_class(write: Writer) -> None:
    raster = write()
    write_dbase_table(raster + ".vat.dbf", Value=[0, 1, 2], Class_name=["Unclassified", "A", "B"])
    assert [(value, name) for value, name, _ in classes(raster)] == [(1, "A"), (2, "B")]


def test_a_field_of_the_table_can_hold_the_class_value(write: Writer) -> None:
    raster = write(np.array([[1, 2, 3]], dtype=np.uint8))
    columns = {"Value": [1, 2, 3], "ClassValue": [7, 7, 0], "Class_name": ["Tree", "Tree", "nothing"]}
    write_dbase_table(raster + ".vat.dbf", **columns)
    assert [(value, name) for value, name, _ in classes(raster, "classvalue")] == [(7, "Tree")]


def test_category_names_name_the_classes(write: Writer) -> None:
    raster = write()
    write_gdal_table(raster, [], categories=["background", "Tree", "Road"])
    assert [(value, name) for value, name, _ in classes(raster)] == [(1, "Tree"), (2, "Road")]


def test_category_names_take_the_colour_tables_colours(write: Writer) -> None:
    raster = write()
    with rasterio.open(raster, "r+") as dataset:
        dataset.write_colormap(1, {1: (9, 8, 7), 2: (6, 5, 4)})
    write_gdal_table(raster, [], categories=["background", "Tree", "Road"])
    assert [color for *_, color in classes(raster)] == [(9, 8, 7), (6, 5, 4)]


@pytest.mark.parametrize(
    ("columns", "field", "says"),
    [
        ({"Class_name": ["A"]}, None, "no column of pixel values .it has Class_name."),
        ({"Value": [1.5], "Class_name": ["A"]}, None, "pixel value 1.5"),
        ({"Value": [1], "Class_name": ["A"]}, "kind", "no field 'kind'.*Value, Class_name"),
        ({"Value": [1], "Kind": ["x"]}, "kind", "'x' where a class value is expected"),
        ({"Value": [1], "Kind": [-4]}, "kind", "class value -4"),
        ({"Value": [1, 2], "Kind": [3, 3], "Name": ["A", "B"]}, "kind", "3 .* several names: A, B"),
        ({"Value": [1, 1], "Kind": [3, 4]}, "kind", "pixel value 1 the classes 3 and 4"),
        ({"Value": [1, 2], "Name": ["A", "A"]}, None, "'A' belongs to the values 1 and 2"),
    ],
)
def test_a_table_that_makes_no_sense_is_refused(
    write: Writer, columns: dict[str, Any], field: str | None, says: str
) -> None:
    raster = write()
    write_dbase_table(raster + ".vat.dbf", **columns)
    with pytest.raises(LabelError, match=says):
        classes(raster, field)


def test_a_table_of_ranges_is_refused(write: Writer) -> None:
    raster = write()
    write_gdal_table(raster, [("from", INTEGER, LEAST, [0, 2]), ("to", INTEGER, MOST, [1, 3])])
    with pytest.raises(LabelError, match="no column of pixel values"):
        classes(raster)


def test_a_damaged_table_is_refused(write: Writer) -> None:
    raster = write()
    Path(raster + ".vat.dbf").write_bytes(b"no table at all")
    with pytest.raises(LabelError, match=r"vat\.dbf cannot be read"):
        classes(raster)


def test_entities_in_a_side_file_are_not_expanded(write: Writer) -> None:
    raster = write()
    entities = '<!DOCTYPE a [<!ENTITY x "boom"><!ENTITY f SYSTEM "file:///etc/hostname">]>'
    Path(raster + ".aux.xml").write_text(
        entities + '<PAMDataset><PAMRasterBand band="1"><CategoryNames><Category>none</Category>'
        "<Category>&x;</Category><Category>&f;</Category></CategoryNames></PAMRasterBand></PAMDataset>"
    )
    # GDAL takes no such file for its own, so the values that occur name the classes.
    assert [name for _, name, _ in classes(raster)] == ["1", "2"]


def test_a_field_without_a_table_is_refused(write: Writer) -> None:
    with pytest.raises(LabelError, match="no attribute table, so no field 'kind'"):
        classes(write(), "kind")
    assert [value for value, *_ in classes(write(), "Value")] == [1, 2]
