"""The side files of training data: stats.txt, esri_accumulated_stats.json, esri_model_definition.emd.

Format: docs/formats/training-data.md, "Side files". Their lexical form (two spaces of indentation,
``"key" : value``, column widths) is ArcGIS's; they name Chipline as their source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.labels.schema import ClassSchema
from tasks.training_data import layout
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
        metadata_format: "Classified_Tiles" or "PASCAL_VOC_rectangles".
        tile_size: (rows, cols), px.
        classes: the class schema.
        band_names: one per band.
        bands: statistics over the valid pixels of all chips.
        contents: statistics of the classes over all chips.
        raster_count: number of input rasters.
        min_cell_size: (x, y) of the finest raster, map units.
        max_cell_size: (x, y) of the coarsest raster, map units.
        wkid: code of the spatial reference; None if it has none.
        crs_wkt: the spatial reference where it has no code.
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

    @property
    def has_features(self) -> bool:
        """Whether labels are counted as features (rectangles) and not as pixels (tiles)."""
        return self.metadata_format != layout.CLASSIFIED_TILES


def stats_txt(summary: ExportSummary) -> bytes:
    """The report for people."""
    contents, (rows, cols) = summary.contents, summary.tile_size
    lines = [f"images = {contents.images} *{len(summary.band_names)}*{rows}*{cols}"]
    if summary.has_features:
        lines += [
            f"features = {contents.features}",
            f"features per image = {_range(contents.features_per_image)}",
            f"classes = {len(summary.classes)}",
        ]
    else:
        lines += [
            f"classes = {len(summary.classes)}",
            f"classes per image = {_range(contents.classes_per_image)}",
        ]
    counted = "features" if summary.has_features else "pixels"
    lines.append(
        f"{'cls name':<{_NAME_WIDTH}}{'cls value':>{_COUNT_WIDTH}}{'images':>{_COUNT_WIDTH}}"
        f"{counted:>{_COUNT_WIDTH}}"
        + "".join(f"{title:>{_SIZE_WIDTH}}" for title in ("min size", "mean size", "max size"))
    )
    for item in summary.classes:
        size = contents.size_per_class[item.value]
        lines.append(
            f"{item.name:<{_NAME_WIDTH}}{item.value:>{_COUNT_WIDTH}}"
            f"{contents.images_per_class[item.value]:>{_COUNT_WIDTH}}"
            f"{contents.count_per_class[item.value]:>{_COUNT_WIDTH}}"
            + "".join(f"{number:>{_SIZE_WIDTH}.2f}" for number in (size.low, size.mean, size.high))
        )
    return ("\n".join(lines) + "\n").encode("utf-8")


def _range(spread: Spread) -> str:
    return f"[min = {spread.low:.0f}, mean = {spread.mean:.2f}, max = {spread.high:.0f}]"


def accumulated_stats(summary: ExportSummary) -> bytes:
    """esri_accumulated_stats.json."""
    contents, values = summary.contents, summary.classes.values
    number = int if not summary.has_features else float
    sizes = [_spread(contents.size_per_class[value], number) for value in values]
    per_class = {
        "NumClasses": len(values),
        "NumImagesTotal": contents.images,
        "NumImagesPerClass": [contents.images_per_class[value] for value in values],
    }
    counts = [contents.count_per_class[value] for value in values]
    document: dict[str, Any] = {
        "Version": 1,
        "NumBands": len(summary.band_names),
        "TileSizeX": summary.tile_size[1],
        "TileSizeY": summary.tile_size[0],
        "NumClasses": len(values),
        "NumTiles": contents.images,
        "OutputFeatures": summary.has_features,
        "MetaDataMode": summary.metadata_format,
        "Classes": [{"ClassValue": item.value, "ClassName": item.name} for item in summary.classes],
    }
    if summary.has_features:
        document["FeatureStats"] = {
            "NumClasses": per_class["NumClasses"],
            "NumImagesTotal": per_class["NumImagesTotal"],
            "NumFeaturesTotal": contents.features,
            "NumImagesPerClass": per_class["NumImagesPerClass"],
            "NumFeaturesPerClass": counts,
            "NumFeaturesPerImage": _spread(contents.features_per_image, int),
            "FeatureAreaPerClass": sizes,
        }
    else:
        document["ClassPixelStats"] = per_class | {
            "NumPixelsPerClass": counts,
            "NumClassesPerImage": _spread(contents.classes_per_image, int),
            "PixelsPerClass": sizes,
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
    stats = summary.bands.to_rows()
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
        "Classes": summary.classes.to_records(),
        _WELL_KNOWN_BANDS_KEY: list(_WELL_KNOWN_BANDS),
        "Description": f"Template for a model trained on these chips, written by {SOURCE}",
        "MetaDataMode": summary.metadata_format,
        "ImageSpaceUsed": "MAP_SPACE",
        "InputRastersProps": {
            "RasterCount": summary.raster_count,
            "SensorName": "",
            "BandNames": list(summary.band_names),
        },
        "AllTilesStats": [
            {
                "BandName": name,
                "Min": row[3] or 0.0,
                "Max": row[4] or 0.0,
                "Mean": row[1],
                "StdDev": float(std),
            }
            for name, row, std in zip(summary.band_names, stats, summary.bands.std, strict=True)
        ],
        "MinCellSize": _cell_size(summary.min_cell_size, summary),
        "MaxCellSize": _cell_size(summary.max_cell_size, summary),
        "BlackenAroundFeature": False,
        "CropTileMode": "Fixed_Size",
        "IsMultidimensional": False,
    }
    return _document(document)


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
