"""The side files of training data: stats.txt, esri_accumulated_stats.json, esri_model_definition.emd.

Format: docs/formats/training-data.md, "Side files". Their lexical form (two spaces of indentation,
``"key" : value``, column widths) is ArcGIS's; they name Chipline as their source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from tasks.labels.schema import ClassSchema
from tasks.training_data.formats import format_of
from tasks.training_data.sample import Context
from tasks.training_data.statistics import BandStatistics, ClassStatistics, Spread

SOURCE = "Chipline"

_NAME_WIDTH, _COUNT_WIDTH, _SIZE_WIDTH = 20, 11, 12
_WELL_KNOWN_BANDS_KEY = "WellKnownBandNames (FYI, these band names can be used in ExtractBands)"
_WELL_KNOWN_BANDS = (
    "Red",
    "Green",
    "Blue",
    "Infrared",
    "CoastalBlue",
    "Yellow",
    "RedEdge",
    "ShortWaveInfrared",
    "NearInfrared",
    "NearInfrared_1",
    "NearInfrared_2",
    "MidInfrared",
    "MidInfrared_1",
    "MidInfrared_2",
    "Thermal",
    "Thermal_1",
    "Thermal_2",
    "Panchromatic",
    "PseudoRed",
    "PseudoGreen",
    "PseudoBlue",
)


@dataclass(frozen=True)
class ExportSummary:
    """All that the side files say about a set of chips.

    Attributes:
        metadata_format: its name.
        tile_size: (rows, cols), px.
        classes: the class schema of the labels.
        band_names: one per band.
        bands: statistics over the valid pixels of all chips.
        contents: statistics of the classes over all chips, of all of :attr:`all_classes`.
        raster_count: number of input rasters.
        min_cell_size: (x, y) of the finest raster, map units.
        max_cell_size: (x, y) of the coarsest raster, map units.
        wkid: code of the spatial reference; None if it has none.
        crs_wkt: the spatial reference where it has no code.
        band_names2: the same of the second raster; empty where there is none.
        bands2: statistics of the second raster's chips.
        image_space: "MAP_SPACE", "PIXEL_SPACE" or "IMAGE_SPACE".
        blacken_around_feature: whether pixels outside of the feature are 0.
        fixed_size: whether all chips have the tile size.
        instance_classes: the classes of the instance data (Panoptic_Segmentation only).
    """

    metadata_format: str
    tile_size: tuple[int, int]
    classes: ClassSchema
    band_names: tuple[str, ...]
    bands: BandStatistics
    contents: ClassStatistics
    raster_count: int
    min_cell_size: tuple[float, float]
    max_cell_size: tuple[float, float]
    wkid: int | None
    crs_wkt: str | None = None
    band_names2: tuple[str, ...] = ()
    bands2: BandStatistics | None = None
    image_space: str = "MAP_SPACE"
    blacken_around_feature: bool = False
    fixed_size: bool = True
    instance_classes: ClassSchema | None = None

    @property
    def counts(self) -> Literal["pixels", "features", "nothing"]:
        """What is counted of each class."""
        return format_of(self.metadata_format).counts

    @cached_property
    def all_classes(self) -> ClassSchema:
        """The classes under the names that the folder uses."""
        context = Context("TIFF", None, self.classes, self.instance_classes)
        return format_of(self.metadata_format).all_classes(context)


def stats_txt(summary: ExportSummary) -> bytes:
    """The report for people."""
    contents, (rows, cols) = summary.contents, summary.tile_size
    lines = [f"images = {contents.images} *{len(summary.band_names)}*{rows}*{cols}"]
    if summary.counts != "nothing":
        lines += _class_lines(summary, summary.counts)
    return ("\n".join(lines) + "\n").encode("utf-8")


def _class_lines(summary: ExportSummary, counted: Literal["pixels", "features"]) -> list[str]:
    contents, classes = summary.contents, summary.all_classes
    lines = [f"classes = {len(classes)}"]
    if counted == "features":
        lines[:0] = [
            f"features = {contents.features}",
            f"features per image = {_range(contents.features_per_image)}",
        ]
    else:
        lines.append(f"classes per image = {_range(contents.classes_per_image)}")
    lines.append(
        f"{'cls name':<{_NAME_WIDTH}}{'cls value':>{_COUNT_WIDTH}}{'images':>{_COUNT_WIDTH}}"
        f"{counted:>{_COUNT_WIDTH}}"
        + "".join(f"{title:>{_SIZE_WIDTH}}" for title in ("min size", "mean size", "max size"))
    )
    for item in classes:
        size = contents.size_per_class[item.value]
        lines.append(
            f"{item.name:<{_NAME_WIDTH}}{item.value:>{_COUNT_WIDTH}}"
            f"{contents.images_per_class[item.value]:>{_COUNT_WIDTH}}"
            f"{contents.count_per_class[item.value]:>{_COUNT_WIDTH}}"
            + "".join(f"{number:>{_SIZE_WIDTH}.2f}" for number in (size.low, size.mean, size.high))
        )
    return lines


def _range(spread: Spread) -> str:
    return f"[min = {spread.low:.0f}, mean = {spread.mean:.2f}, max = {spread.high:.0f}]"


def accumulated_stats(summary: ExportSummary) -> bytes:
    """esri_accumulated_stats.json."""
    contents, classes = summary.contents, summary.all_classes
    document: dict[str, Any] = {
        "Version": 1,
        "NumBands": len(summary.band_names),
        "TileSizeX": summary.tile_size[1],
        "TileSizeY": summary.tile_size[0],
        "NumClasses": len(classes),
        "NumTiles": contents.images,
        "OutputFeatures": summary.counts == "features",
        "MetaDataMode": summary.metadata_format,
        "Classes": [{"ClassValue": item.value, "ClassName": item.name} for item in classes],
    }
    counted = () if summary.counts == "nothing" else classes.values
    images = [contents.images_per_class[value] for value in counted]
    counts = [contents.count_per_class[value] for value in counted]
    if summary.counts == "features":
        document["FeatureStats"] = {
            "NumClasses": len(classes),
            "NumImagesTotal": contents.images,
            "NumFeaturesTotal": contents.features,
            "NumImagesPerClass": images,
            "NumFeaturesPerClass": counts,
            "NumFeaturesPerImage": _spread(contents.features_per_image, int),
            "FeatureAreaPerClass": [
                _spread(contents.size_per_class[value], float) for value in classes.values
            ],
        }
    elif summary.counts == "pixels":
        document["ClassPixelStats"] = {
            "NumClasses": len(classes),
            "NumImagesTotal": contents.images,
            "NumImagesPerClass": images,
            "NumPixelsPerClass": counts,
            "NumClassesPerImage": _spread(contents.classes_per_image, int),
            "PixelsPerClass": [_spread(contents.size_per_class[value], int) for value in classes.values],
        }
    document["BandStatsState"] = [
        {"Min": low or 0.0, "Max": high or 0.0, "Num": count, "M1": mean, "M2": m2}
        for count, mean, m2, low, high in summary.bands.to_rows()
    ]
    return _document(document)


def _spread(spread: Spread, number: type[int] | type[float]) -> dict[str, float]:
    return {
        "Min": number(spread.low),
        "Max": number(spread.high),
        "Mean": spread.mean,
        "Sum": number(spread.total),
        "Count": spread.count,
    }


def model_definition(summary: ExportSummary) -> bytes:
    """The template esri_model_definition.emd: the keys of old releases in their order, then newer ones.

    Where the export knows a number it stands in place of the placeholder text, which readers accept.
    """
    rows, cols = summary.tile_size
    document: dict[str, Any] = {
        "Framework": "e.g. PyTorch",
        "ModelConfiguration": "e.g. the network and its settings",
        "ModelType": "e.g. ObjectDetection or ImageClassification",
        "ModelFile": "e.g. .\\trained.model",
        "ImageHeight": rows,
        "ImageWidth": cols,
        "ExtractBands": list(range(len(summary.band_names))),
        "DataRange": "e.g. [0.1, 1.0]",
        "ModelPadding": "e.g. 64 (optional)",
        "BatchSize": "e.g. 8 (optional)",
        "PerProcessGPUMemoryFraction": "e.g. 0.8 (optional)",
        "Classes": summary.all_classes.to_records(),
        _WELL_KNOWN_BANDS_KEY: list(_WELL_KNOWN_BANDS),
        "Description": f"Template for a model trained on these chips, written by {SOURCE}",
        "MetaDataMode": summary.metadata_format,
        "ImageSpaceUsed": summary.image_space,
        "InputRastersProps": {
            "RasterCount": summary.raster_count,
            "SensorName": "",
            "BandNames": list(summary.band_names),
        },
        "AllTilesStats": _tiles_stats(summary.band_names, summary.bands),
    }
    if summary.bands2 is not None:
        document["AllTilesStats2"] = _tiles_stats(summary.band_names2, summary.bands2)
    document |= {
        "MinCellSize": _cell_size(summary.min_cell_size, summary),
        "MaxCellSize": _cell_size(summary.max_cell_size, summary),
        "BlackenAroundFeature": summary.blacken_around_feature,
        "CropTileMode": "Fixed_Size" if summary.fixed_size else "Variable_Size",
        "IsMultidimensional": False,
    }
    if summary.instance_classes:
        objects = set(summary.instance_classes.values)
        document["Panoptic_Segmentation_Instance_Classes"] = [
            record for record in summary.all_classes.to_records() if record["Value"] in objects
        ]
    return _document(document)


def _tiles_stats(names: Sequence[str], bands: BandStatistics) -> list[dict[str, Any]]:
    return [
        {
            "BandName": name,
            "Min": row[3] or 0.0,
            "Max": row[4] or 0.0,
            "Mean": row[1],
            "StdDev": float(std),
        }
        for name, row, std in zip(names, bands.to_rows(), bands.std, strict=True)
    ]


def _cell_size(size: tuple[float, float], summary: ExportSummary) -> dict[str, Any]:
    if summary.wkid is not None:
        reference: Mapping[str, Any] = {"wkid": summary.wkid, "latestWkid": summary.wkid}
    else:
        reference = {"wkt": summary.crs_wkt or ""}
    return {"x": size[0], "y": size[1], "spatialReference": reference}


def _document(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content, indent=2, separators=(",", " : "), ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8")


def wkid_of(crs_wkt: str) -> int | None:
    """The EPSG or ESRI code of a CRS; None if it has none."""
    from pyproj import CRS

    for authority in ("EPSG", "ESRI"):
        found = CRS.from_wkt(crs_wkt).to_authority(authority, min_confidence=70)
        if found is not None and found[1].isdigit():
            return int(found[1])
    return None


def default_band_names(count: int, given: Sequence[str] = ()) -> tuple[str, ...]:
    """The raster's band names; where it names none: Red, Green, Blue for three bands, else Band_1, …."""
    if len(given) == count and all(given):
        return tuple(given)
    if count == 3:
        return ("Red", "Green", "Blue")
    return tuple(name or f"Band_{i}" for i, name in enumerate([*given, *[""] * count][:count], start=1))
