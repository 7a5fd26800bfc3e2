"""Class schema files and layers to draw labels in.

python -m tasks.labels template classes.json labels.gpkg --crs EPSG:32612
python -m tasks.labels template classes.json labels.gpkg --raster scene.tif
python -m tasks.labels classes labels.gpkg > classes.json
python -m tasks.labels check classes.json
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tasks.errors import ChiplineError, LabelError
from tasks.labels.schema import ClassSchema


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; 0 when it worked."""
    parser = argparse.ArgumentParser(
        prog="python -m tasks.labels",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    template = commands.add_parser("template", help="make an empty GeoPackage to draw labels in")
    template.add_argument("classes", help="the class schema file")
    template.add_argument("path", type=Path, help="the GeoPackage to make")
    where = template.add_mutually_exclusive_group(required=True)
    where.add_argument("--crs", help="reference system of the layer, for example EPSG:32612")
    where.add_argument("--raster", help="take the reference system of this raster")
    classes = commands.add_parser("classes", help="write the classes of labels as a class schema file")
    classes.add_argument("labels", help="vector or raster labels")
    classes.add_argument("--classvalue-field", help="the field with the class value")
    check = commands.add_parser("check", help="read a class schema file and list its classes")
    check.add_argument("classes", help="the class schema file")
    given = parser.parse_args(arguments)
    try:
        sys.stdout.write(_run(given))
    except ChiplineError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _run(given: argparse.Namespace) -> str:
    from tasks.labels.schema_file import read_schema_file, schema_document

    if given.command == "template":
        from tasks.labels.template import LAYER, write_label_template

        schema = read_schema_file(given.classes)
        write_label_template(schema, given.path, given.crs or _crs_of(given.raster))
        return f"{given.path}: layer {LAYER!r}, {len(schema)} classes\n"
    if given.command == "classes":
        document = schema_document(_classes_of(given.labels, given.classvalue_field))
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return describe(read_schema_file(given.classes))


def describe(schema: ClassSchema) -> str:
    """The classes as a table for people."""
    lines = [f"{'value':>10}  {'color':7}  {'parent':>10}  name"]
    for item in schema:
        parent = "" if item.parent is None else str(item.parent)
        color = "#{:02x}{:02x}{:02x}".format(*item.color)
        lines.append(f"{item.value:>10}  {color:7}  {parent:>10}  {item.name}")
    return "\n".join(lines) + "\n"


def _crs_of(uri: str) -> str:
    from tasks.imagery import inspect_raster

    crs_wkt = inspect_raster(uri).crs_wkt
    if crs_wkt is None:
        raise LabelError(f"The raster {uri} has no coordinate reference system.", "Give --crs instead.")
    return crs_wkt


def _classes_of(uri: str, classvalue_field: str | None) -> ClassSchema:
    from tasks.labels.raster import is_raster_labels, raster_classes

    if is_raster_labels(uri):
        return raster_classes([uri], classvalue_field=classvalue_field)
    from tasks.labels.vector import read_vector_labels

    return read_vector_labels(uri, classvalue_field).schema


if __name__ == "__main__":
    raise SystemExit(main())
