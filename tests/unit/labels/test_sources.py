"""Opening vector sources: the formats GDAL reads, their side files, batches."""

from __future__ import annotations

import sqlite3
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import geopandas
import numpy as np
import pyarrow as pa
import pyogrio.raw
import pytest
import shapely

from tasks.errors import LabelError, NotFoundError
from tasks.labels import read_vector_labels
from tasks.labels.sources import open_source, read_frame, source_files

SHAPES = [
    shapely.box(500_000, 5_000_000, 500_010, 5_000_010),
    shapely.box(500_020, 5_000_000, 500_030, 5_000_010),
]


@pytest.fixture
def trees() -> geopandas.GeoDataFrame:
    fields = {"classvalue": np.array([2, 3], dtype="int32"), "classname": ["Palm", "Oak"]}
    return geopandas.GeoDataFrame(fields, geometry=SHAPES, crs="EPSG:32612")


def _zip(path: Path, files: list[Path], below: str = "") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, below + file.name)
    return path


def _write(trees: geopandas.GeoDataFrame, folder: Path, name: str) -> Path:
    path = folder / name
    degrees = trees.to_crs(4326)
    match name.split(".", 1)[1]:
        case "gdb":
            trees.to_file(path, driver="OpenFileGDB")
        case "gdb.zip":
            trees.to_file(folder / "inner.gdb", driver="OpenFileGDB")
            _zip(path, sorted((folder / "inner.gdb").iterdir()), "inner.gdb/")
        case "zip":
            trees.to_file(folder / "inner.shp")
            _zip(path, sorted(folder.glob("inner.*")), "deep/er/")
        case "tab" | "mif":
            trees.to_file(path, driver="MapInfo File")
        case "kml":
            degrees.to_file(path, driver="LIBKML")
        case "gml":
            trees.to_file(path, driver="GML")
        case "csv":
            rows = [
                f'"{shape.wkt}",{value},{name}'
                for shape, value, name in zip(SHAPES, (2, 3), ("Palm", "Oak"), strict=True)
            ]
            path.write_text("\n".join(["WKT,classvalue,classname", *rows]))
            path.with_suffix(".prj").write_text(trees.crs.to_wkt("WKT1_ESRI"))
        case "parquet":
            trees.to_parquet(path, geometry_encoding="geoarrow", schema_version="1.1.0")
        case "geojsonl":
            degrees.to_file(path, driver="GeoJSONSeq", COORDINATE_PRECISION="9")
        case _:
            raise AssertionError(name)
    return path


@pytest.mark.parametrize(
    "name",
    ["a.gdb", "a.gdb.zip", "a.zip", "a.tab", "a.mif", "a.kml", "a.gml", "a.csv", "a.parquet", "a.geojsonl"],
)
def test_what_gdal_reads_can_be_labels(trees: geopandas.GeoDataFrame, tmp_path: Path, name: str) -> None:
    path = _write(trees, tmp_path, name)
    before = sorted(tmp_path.rglob("*"))
    labels = read_vector_labels(str(path), target_crs_wkt=trees.crs.to_wkt())
    assert labels.values.tolist() == [2, 3]
    assert labels.schema.names == ("Palm", "Oak")
    assert np.abs(np.array(labels.bounds) - trees.total_bounds).max() < 1e-3
    assert len(read_frame(str(path))) == 2
    assert sorted(tmp_path.rglob("*")) == before, "reading left a file behind"


def test_shapefiles_in_one_zip_file_are_layers(trees: geopandas.GeoDataFrame, tmp_path: Path) -> None:
    trees.to_file(tmp_path / "oaks.shp")
    trees[:1].to_file(tmp_path / "palms.shp")
    files = sorted(path for path in tmp_path.iterdir() if path.stem in ("oaks", "palms"))
    path = _zip(tmp_path / "both.zip", files)
    assert len(read_vector_labels(f"{path}|layername=palms")) == 1
    with pytest.raises(LabelError, match="several layers: oaks, palms"):
        read_vector_labels(str(path))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.shp", ["a.shp", "a.cpg", "a.dbf", "a.prj", "a.shx"]),
        ("a.tab", ["a.tab", "a.dat", "a.id", "a.map"]),
        ("a.gpkg", ["a.gpkg"]),
    ],
)
def test_side_files_belong_to_a_source_and_neighbours_do_not(
    trees: geopandas.GeoDataFrame, tmp_path: Path, name: str, expected: list[str]
) -> None:
    trees.to_file(tmp_path / name)
    (tmp_path / "a.tif").write_bytes(b"")
    (tmp_path / "a.b.shp").write_bytes(b"")
    assert [Path(uri).name for uri in source_files(f"{tmp_path / name}|layername=a")] == expected


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for s3://bucket."""
    root = tmp_path / "bucket"
    root.mkdir()

    class Store:
        def stat(self, uri: str) -> None:
            if not (root / uri.removeprefix("s3://bucket/")).is_file():
                raise NotFoundError(f"There is no {uri}.", "Check it.")

        def list(self, prefix: str) -> list[SimpleNamespace]:
            uris = [f"s3://bucket/{path.relative_to(root)}" for path in root.rglob("*") if path.is_file()]
            return [SimpleNamespace(uri=uri) for uri in uris if uri.startswith(prefix)]

        def download(self, uri: str, path: Path) -> None:
            path.write_bytes((root / uri.removeprefix("s3://bucket/")).read_bytes())

    monkeypatch.setattr("tasks.store.ObjectStore", Store)
    return root


@pytest.mark.parametrize("name", ["a.gdb", "a.tab", "a.gdb.zip", "a.csv"])
def test_objects_are_copied_with_all_that_belongs_to_them(
    trees: geopandas.GeoDataFrame, bucket: Path, name: str
) -> None:
    folder = bucket / "some where"
    folder.mkdir()
    _write(trees, folder, name)
    assert read_vector_labels(f"s3://bucket/some where/{name}").values.tolist() == [2, 3]
    with pytest.raises(NotFoundError):
        read_vector_labels(f"s3://bucket/some where/b{name}")


def test_a_file_that_names_other_files_is_refused_whatever_it_is_called(
    trees: geopandas.GeoDataFrame, tmp_path: Path
) -> None:
    trees.to_file(tmp_path / "a.shp")
    path = tmp_path / "innocent.gpkg"
    path.write_text(
        f'<OGRVRTDataSource><OGRVRTLayer name="a"><SrcDataSource>{tmp_path}/a.shp</SrcDataSource>'
        "</OGRVRTLayer></OGRVRTDataSource>"
    )
    with pytest.raises(LabelError, match="only refers to data elsewhere"):
        read_vector_labels(str(path))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.zip", b"no zip", "cannot be read"),
        ("a.parquet", b"no parquet", "cannot be read"),
        ("a.csv", b"a,b\n1,2\n", "no layer with geometry"),
        ("a.geojson", b'{"type": "FeatureCollection", "features": [{"type"', "cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_with_a_remedy(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelError, match=message):
        read_vector_labels(str(tmp_path / name))


def test_batches_hold_all_records_in_order_whatever_their_size(
    write_labels: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = write_labels([shapely.box(i, 0, i + 1, 1) for i in range(50)], value=list(range(1, 51)))
    monkeypatch.setattr("tasks.labels.sources._BATCH", 7)
    with open_source(uri) as source:
        batches = list(source.batches(["value"]))
    assert max(len(batch) for batch in batches) <= 7
    assert np.concatenate([batch.columns["value"] for batch in batches]).tolist() == list(range(1, 51))
    lefts = shapely.bounds(np.concatenate([batch.geometries for batch in batches]))[:, 0]
    assert lefts.tolist() == list(range(50))
    labels = read_vector_labels(uri)
    assert labels.values.tolist() == list(range(1, 51))
    assert labels.schema.values == tuple(range(1, 51))


@pytest.mark.parametrize("name", ["a.gpkg", "a.parquet", "a.geojson"])
def test_heavy_records_come_in_small_batches(
    write_labels: Callable[..., str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    circles = [shapely.buffer(shapely.Point(i / 100, 0), 0.001, quad_segs=200) for i in range(300)]
    uri = write_labels(circles, name, "EPSG:4326", value=[1] * 300)
    monkeypatch.setattr("tasks.labels.sources._BATCH_BYTES", 200_000)
    with open_source(uri) as source:
        sizes = [len(batch) for batch in source.batches()]
    assert sum(sizes) == 300
    # A record takes about 13,000 bytes; of a GeoJSON file GDAL does not tell how many it holds.
    assert max(sizes) <= 40 or name == "a.geojson"
    assert max(sizes) <= 256


def test_of_a_field_with_a_coded_domain_the_codes_count(
    trees: geopandas.GeoDataFrame, tmp_path: Path
) -> None:
    path = tmp_path / "coded.gpkg"
    trees[["classvalue", "geometry"]].to_file(path)
    with sqlite3.connect(path) as table:
        table.executescript(
            """
            CREATE TABLE IF NOT EXISTS gpkg_extensions (table_name TEXT, column_name TEXT,
                extension_name TEXT NOT NULL, definition TEXT NOT NULL, scope TEXT NOT NULL);
            CREATE TABLE gpkg_data_columns (table_name TEXT NOT NULL, column_name TEXT NOT NULL, name TEXT,
                title TEXT, description TEXT, mime_type TEXT, constraint_name TEXT);
            CREATE TABLE gpkg_data_column_constraints (constraint_name TEXT NOT NULL,
                constraint_type TEXT NOT NULL, value TEXT, min NUMERIC, min_is_inclusive BOOLEAN,
                max NUMERIC, max_is_inclusive BOOLEAN, description TEXT);
            INSERT INTO gpkg_extensions VALUES
                ('gpkg_data_columns', NULL, 'gpkg_schema', 'http://www.geopackage.org', 'read-write'),
                ('gpkg_data_column_constraints', NULL, 'gpkg_schema', 'http://www.geopackage.org',
                 'read-write');
            INSERT INTO gpkg_data_columns VALUES
                ('coded', 'classvalue', 'classvalue', NULL, NULL, NULL, 'classes');
            INSERT INTO gpkg_data_column_constraints VALUES
                ('classes', 'enum', '2', NULL, NULL, NULL, NULL, 'Palm'),
                ('classes', 'enum', '3', NULL, NULL, NULL, NULL, 'Oak');
            """
        )
    assert read_vector_labels(str(path)).values.tolist() == [2, 3]


@pytest.mark.filterwarnings("ignore:Registering non-standard")
def test_curves_become_short_lines_and_surfaces_count_as_empty(tmp_path: Path) -> None:
    # A circle of radius 5 as two arcs, and a TIN, as well-known binary.
    def points(*pairs: tuple[float, float]) -> bytes:
        return struct.pack("<I", len(pairs)) + b"".join(struct.pack("<dd", *pair) for pair in pairs)

    arcs = struct.pack("<BI", 1, 8) + points((0, 0), (5, 5), (10, 0), (5, -5), (0, 0))
    circle = struct.pack("<BII", 1, 10, 1) + arcs
    triangle = struct.pack("<BII", 1, 17, 1) + points((0, 0), (1, 0), (0, 1), (0, 0))
    tin = struct.pack("<BII", 1, 16, 1) + triangle
    form = pa.schema(
        [
            ("value", pa.int32()),
            pa.field("geometry", pa.binary(), metadata={"ARROW:extension:name": "geoarrow.wkb"}),
        ]
    )
    square = shapely.box(20, 20, 30, 30).wkb
    batch = pa.record_batch(
        [pa.array([1, 2, 3], type=pa.int32()), pa.array([circle, square, tin], type=pa.binary())], schema=form
    )
    path = tmp_path / "curves.gpkg"
    pyogrio.raw.write_arrow(
        pa.RecordBatchReader.from_batches(form, [batch]),
        path,
        driver="GPKG",
        geometry_name="geometry",
        geometry_type="Unknown",
        crs="EPSG:32612",
    )
    labels = read_vector_labels(str(path))
    assert shapely.area(labels.geometries).tolist() == pytest.approx([25 * np.pi, 100], rel=2e-3)
    assert labels.values.tolist() == [1, 2]
    assert labels.empty == 1
