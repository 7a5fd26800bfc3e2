"""What a package's inference function says about itself, asked once per package and arguments.

Asking means starting the function's process, which loads a framework and takes seconds; the answer is kept
in the store, so that planning the same work again touches no framework.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.errors import BadInputError, PackageError, PreconditionFailedError
from tasks.host import GEOMETRY_TYPES, HostProcess
from tasks.infer.score_layout import score_layout
from tasks.infer.scores import ScoreLayout
from tasks.infer.shards import TileGeometry
from tasks.package import Package
from tasks.package.builtin import function_identity
from tasks.settings import settings
from tasks.store import ObjectStore, join, run_key

# Bumped when what is kept here changes.
DESCRIPTION_VERSION = 5


class FunctionDescription(BaseModel):
    """Answers of an inference function, for one set of arguments.

    Attributes:
        scalars: all arguments, defaults filled in, as the function receives them.
        geometry: tile sizes.
        extract_bands: bands that it wants, 0-based or by name; None: all.
        output_dtype: numpy name of what ``updatePixels`` returns.
        output_nodata: its nodata value, where it states one.
        output_bands: how many bands it makes.
        fields: names of the fields that its objects have.
        scores: layout of its scores; None where they cannot be had.
        no_scores: why not.
        data_range: (lowest, highest) value that pixels are to be rescaled to; None: as they are.
        crops: ``batch_size``, ``CropSizeFixed`` and ``BlackenAroundFeature`` as a function of several rasters
            states them; empty for all others.
    """

    model_config = ConfigDict(frozen=True)

    scalars: dict[str, str | int | float]
    geometry: TileGeometry
    extract_bands: list[int | str] | None
    output_dtype: str
    output_nodata: float | None
    output_bands: int = 1
    fields: list[str]
    scores: ScoreLayout | None = None
    no_scores: str = ""
    data_range: tuple[float, float] | None = None
    crops: dict[str, int] = {}


# docs/formats/python-raster-function.md §5
_PIXEL_TYPES = {
    "t1": "uint8",
    "t2": "uint8",
    "t4": "uint8",
    "u1": "uint8",
    "u2": "uint16",
    "u4": "uint32",
    "i1": "int8",
    "i2": "int16",
    "i4": "int32",
    "f4": "float32",
    "f8": "float64",
}


_SETTLED_BY_THE_ENGINE = (
    "ChiplineObjectDetector.py",
    "ChiplineInstanceDetector.py",
    "ChiplinePanopticSegmenter.py",
)


def function_arguments(package: Package, given: dict[str, str]) -> dict[str, str]:
    """The arguments that the function gets: those given, and one that the engine asks of our own detectors.

    They would leave out objects whose centre lies in the padding; the reconciliation needs to see
    them (``tasks.infer.reconcile``), unless the person insists.
    """
    if package.definition.inference_function in _SETTLED_BY_THE_ENGINE:
        return {"exclude_pad_detections": "False", **given}
    return given


def describe(
    package: Package, arguments: dict[str, str], store: ObjectStore, *, foreign: bool
) -> FunctionDescription:
    """The function's description, from the store or from the function itself (on the CPU).

    Args:
        package: the package, unpacked.
        arguments: what the function is given, see :func:`function_arguments`.
        store: keeps descriptions.
        foreign: the package was not made here, so the host contains it or refuses.

    Raises:
        BadInputError: an argument that the function does not have; the message names those it has.
        PackageError: the function asks for what the engine cannot give.
        HostError: the function fails to start.
    """
    builtin = function_identity(package.definition)
    key = run_key({"version": DESCRIPTION_VERSION, "arguments": arguments, **builtin})
    uri = join(settings().root, "packages", package.name, package.digest, "descriptions", f"{key}.json")
    if store.exists(uri):
        try:
            return FunctionDescription.model_validate_json(store.get(uri))
        except ValidationError:
            store.delete(uri)  # damaged: ask the function again
    with HostProcess(package, processor_type="CPU", arguments=arguments, foreign=foreign) as host:
        description = description_of(host, package)
    # Another run may have asked at the same time; it got the same answer.
    with suppress(PreconditionFailedError):
        store.put(uri, description.model_dump_json().encode(), if_none_match=True)
    return description


def description_of(host: HostProcess, package: Package) -> FunctionDescription:
    """The description that a running host gives.

    Raises:
        PackageError: no tile size, objects that are no polygons, or no range of pixel values that can be
            used.
    """
    configuration: dict[str, Any] = host.configuration
    definition = package.definition
    padding = int(configuration.get("padding") or 0)
    rows = int(configuration.get("ty") or 0) or (definition.image_height or 0) - 2 * padding
    cols = int(configuration.get("tx") or 0) or (definition.image_width or 0) - 2 * padding
    if rows < 1 or cols < 1 or padding < 0:
        raise PackageError(
            f"The function of {package.name} states blocks of {rows} x {cols} pixels with a "
            f"padding of {padding}.",
            "Give a smaller padding among the model arguments, or state tx, ty and padding in "
            "getConfiguration.",
        )
    kind = GEOMETRY_TYPES.get(host.geometry_type or 4)
    if kind != "polygon" and not host.takes_batches:
        raise PackageError(
            f"The function of {package.name} finds objects of the geometry {kind}, and the tool's layers "
            "hold polygons.",
            "Use a function whose getGeometryType() is 4: polygons, boxes too.",
        )
    bands = configuration.get("extractBands")
    output: dict[str, Any] = host.output_info or {}
    nodata = output.get("noData")
    if isinstance(nodata, list | tuple):
        nodata = nodata[0] if nodata else None
    geometry = TileGeometry(rows=rows, cols=cols, padding=padding)
    scores, no_scores = _scores(host, package, geometry)
    return FunctionDescription(
        scalars=host.scalars,
        geometry=geometry,
        extract_bands=None if bands is None else list(bands),
        output_dtype=_PIXEL_TYPES.get(str(output.get("pixelType", "i4")).lower(), "int32"),
        output_nodata=None if nodata is None else float(nodata),
        output_bands=max(1, int(output.get("bandCount") or 1)),
        fields=[str(field["name"]) for field in host.fields if "name" in field],
        scores=scores,
        no_scores=no_scores,
        data_range=_data_range(configuration.get("dataRange"), package),
        crops=_crops(configuration) if host.takes_batches else {},
    )


def _crops(configuration: dict[str, Any]) -> dict[str, int]:
    """What a function of several rasters says about its crops."""
    found = {}
    for key in ("batch_size", "CropSizeFixed", "BlackenAroundFeature"):
        with suppress(TypeError, ValueError):
            found[key] = int(configuration[key]) if key in configuration else -1
    return {"batch_size": 1, **{key: value for key, value in found.items() if value >= 0}}


def _data_range(stated: Any, package: Package) -> tuple[float, float] | None:
    if stated is None or stated in ((), []):
        return None
    try:
        low, high = (float(value) for value in stated)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (math.isfinite(low) and math.isfinite(high) and low != high):
        raise PackageError(
            f"The function of {package.name} asks for pixels rescaled to {stated}, which is no range.",
            "State dataRange in getConfiguration as two different numbers, or leave it out.",
        )
    return low, high


def _scores(host: HostProcess, package: Package, geometry: TileGeometry) -> tuple[ScoreLayout | None, str]:
    if not host.offers_scores:
        reason = host.configuration.get("no_scores", "offers no predict_scores")
        return None, f"the function of {package.name} {reason}"
    values = [item.value for item in package.definition.classes or []]
    try:
        return score_layout(host.configuration, values, geometry), ""
    except BadInputError as error:
        return None, f"those of {package.name} cannot be read: {error}"
