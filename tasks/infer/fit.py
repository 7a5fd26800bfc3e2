"""How package and imagery fit: the contracts of all rasters, put together for one plan.

The contract itself is ``tasks/package/contract.py``. Here a few rasters are looked into, and what the
contracts say becomes the bands to hand over, the cells to compute on, and remarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInputError
from tasks.imagery import Pixels, RasterInfo, RasterSample, Window, sample_raster
from tasks.imagery.identity import unsigned
from tasks.infer.describe import FunctionDescription
from tasks.infer.parameters import (
    ClassifyObjectsParameters,
    DetectChangeParameters,
    DetectObjectsParameters,
    InferenceTool,
)
from tasks.package import ModelDefinition, Package
from tasks.package.contract import check_contract

# A look costs five small reads; rasters of one collection resemble each other.
LOOKED_AT = 8

Samples = Sequence[RasterSample | None]


class Rescaling(BaseModel):
    """A linear change of pixel values that a function asks for.

    ``low`` becomes ``to_low`` and ``high`` becomes ``to_high``; values outside are clipped.
    """

    model_config = ConfigDict(frozen=True)

    low: float
    high: float
    to_low: float
    to_high: float

    @property
    def remark(self) -> str:
        """The same for people."""
        return (
            f"the function asks for pixels from {self.to_low:g} to {self.to_high:g}: "
            f"the imagery's {self.low:g} to {self.high:g} are rescaled."
        )

    def applied(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Pixel values of any type, rescaled; same shape."""
        factor = (self.to_high - self.to_low) / (self.high - self.low)
        found = (values.astype(np.float32) - np.float32(self.low)) * np.float32(factor) + np.float32(
            self.to_low
        )
        least, most = sorted((self.to_low, self.to_high))
        clipped: NDArray[np.float32] = np.clip(found, np.float32(least), np.float32(most))
        return clipped


@dataclass(frozen=True)
class Fit:
    """How the rasters of a run fit the package.

    Attributes:
        bands: per raster, the 0-based bands to hand over in the network's order.
        cell_sizes: per raster, the cell size to compute on, in units of the target grid; None: its own.
        remarks: what the person should know.
    """

    bands: list[list[int]]
    cell_sizes: list[float | None]
    remarks: list[str]


def separately(parameters: InferenceTool) -> bool:
    """Whether each raster gets a result of its own."""
    if isinstance(parameters, DetectChangeParameters):
        return False
    return parameters.processing_mode != "PROCESS_AS_MOSAICKED_IMAGE"


def target_sr(parameters: InferenceTool) -> int | None:
    """EPSG code of the target grid; None: the rasters' own.

    Separate items are detected in their own coordinate system; only their features are reprojected.
    """
    keeps_own = separately(parameters) and isinstance(
        parameters, DetectObjectsParameters | ClassifyObjectsParameters
    )
    return None if keeps_own else parameters.out_sr


def sample_collection(rasters: Sequence[RasterInfo]) -> list[RasterSample | None]:
    """Looks into a few rasters, spread evenly over the collection; None for the others.

    Raises:
        RasterError: one of them cannot be read.
    """
    count = min(LOOKED_AT, len(rasters))
    chosen = sorted({round(place) for place in np.linspace(0, len(rasters) - 1, count)})
    found: list[RasterSample | None] = [None] * len(rasters)
    with ThreadPoolExecutor(max(count, 1)) as pool:
        for index, sample in zip(
            chosen, pool.map(lambda index: sample_raster(rasters[index]), chosen), strict=True
        ):
            found[index] = sample
    return found


def check_fit(
    parameters: InferenceTool, definition: ModelDefinition, rasters: Sequence[RasterInfo], samples: Samples
) -> Fit:
    """The contracts of all rasters with the package.

    Args:
        parameters: the tool's parameters.
        definition: of the package.
        rasters: the imagery, in order.
        samples: of the rasters, as :func:`sample_collection` gives them; empty: nothing was read.

    Raises:
        BadInputError: a raster does not fit; all that is wrong with it in one message.
    """
    remarks: dict[str, None] = {}
    fit = Fit([], [], [])
    # Whole images are classified as they are.
    whole = isinstance(parameters, ClassifyObjectsParameters) and parameters.in_features is None
    for index, info in enumerate(rasters):
        contract = check_contract(
            definition,
            info,
            cell_size=parameters.cell_size,
            out_sr=target_sr(parameters),
            sample=samples[index] if samples else None,
        )
        contract.raise_refusals(unsigned(info.uri))
        # Of a mosaic the first raster decides the cells.
        decides = not whole and (separately(parameters) or index == 0)
        fit.bands.append(contract.bands)
        fit.cell_sizes.append(contract.cell_size if decides else None)
        for finding in contract.findings:
            if decides or finding.subject != "cell size":
                remarks[f"{finding.text}. {finding.remedy}".strip()] = None
    fit.remarks.extend(remarks)
    return fit


def agreed_bands(
    fit: Fit, package: Package, description: FunctionDescription, rasters: Sequence[RasterInfo]
) -> list[int]:
    """The bands to hand over, the same of all rasters.

    Raises:
        BadInputError: a raster lacks one, or has them in another order than the first.
    """
    definition = package.definition
    if definition.extract_bands is None or description.extract_bands != list(definition.extract_bands):
        # The function decides for itself, by its arguments for instance.
        return _extract_bands(description.extract_bands, rasters)
    for info, bands in zip(rasters, fit.bands, strict=True):
        if bands != fit.bands[0]:
            raise BadInputError(
                f"The bands of {unsigned(info.uri)} are in another order than those of "
                f"{unsigned(rasters[0].uri)}.",
                "Process them in separate runs, or bring their bands into one order.",
            )
    return fit.bands[0]


def _extract_bands(wanted: Sequence[int | str] | None, rasters: Sequence[RasterInfo]) -> list[int]:
    first = rasters[0]
    bands: list[int] = []
    for item in range(first.band_count) if wanted is None else wanted:
        if isinstance(item, int):
            bands.append(item)
            continue
        names = [name.lower() for name in first.band_names]
        if item.lower() not in names:
            raise BadInputError(
                f"The package takes a band {item!r}, and {first.uri} has {', '.join(first.band_names)}.",
                "Give imagery with this band, or name its bands.",
            )
        bands.append(names.index(item.lower()))
    for info in rasters:
        if max(bands) >= info.band_count or min(bands) < 0:
            raise BadInputError(
                f"The package takes the bands {', '.join(str(band + 1) for band in bands)}, and {info.uri} "
                f"has {info.band_count}.",
                "Give imagery with the bands that the package was trained on, in the same order.",
            )
    return bands


def rescaling_for(
    wanted: tuple[float, float] | None, rasters: Sequence[RasterInfo], bands: Sequence[int], samples: Samples
) -> Rescaling | None:
    """How the pixels are brought to the ``dataRange`` that a function asks for; None: it asks for none.

    Source: docs/formats/python-raster-function.md, "getConfiguration". The imagery's range is 0-255 where all
    rasters are of 8 bits, otherwise what the samples show: smallest value and 99th percentile, of all bands
    and rasters together, so that bands keep their proportions and results do not depend on the tile.

    Raises:
        BadInputError: the range is not known, or there is none.
    """
    if wanted is None:
        return None
    if all(np.dtype(info.dtype) == np.uint8 for info in rasters):
        low, high = 0.0, 255.0
    else:
        seen = [
            sample.bands[band] for sample in samples if sample is not None and sample.bands for band in bands
        ]
        low = min((item.low for item in seen), default=0.0)
        high = max((item.high for item in seen), default=0.0)
    if not high > low:
        raise BadInputError(
            f"The function asks for pixels from {wanted[0]:g} to {wanted[1]:g}, and the imagery's own range "
            "is not known: the pixels that were looked at hold no data, or one value.",
            "Rescale the imagery to 8 bits.",
        )
    return Rescaling(low=low, high=high, to_low=wanted[0], to_high=wanted[1])


class RescaledReader:
    """Another reader's pixels, rescaled; 0 where they are not valid.

    Args:
        reader: gives the pixels.
        rescaling: what becomes of them.
    """

    def __init__(self, reader: Any, rescaling: Rescaling) -> None:
        self._reader, self._rescaling = reader, rescaling
        self.band_count: int = reader.band_count
        self.dtype: np.dtype[np.generic] = np.dtype(np.float32)

    def read(self, window: Window) -> Pixels:
        """The pixels of a window.  # (bands, rows, cols), float32

        Raises:
            RasterError: a raster cannot be read.
        """
        pixels = self._reader.read(window)
        values = self._rescaling.applied(pixels.values)
        if not pixels.valid.all():
            values[:, ~pixels.valid] = 0
        return Pixels(values, pixels.valid)
