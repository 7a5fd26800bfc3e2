"""Does a package fit the imagery? Said before any device is touched, with the true cause.

The order of the checks: bands, pixel type, value range, cell size, kind of coordinate system. What agrees is
not mentioned; what can be mended without guessing is mended and reported; the rest is refused or, where the
result may still be good, reported.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from pyproj import CRS
from pyproj.exceptions import CRSError

from tasks.errors import BadInputError
from tasks.imagery import RasterInfo
from tasks.package.definition import ModelDefinition

Verdict = Literal["fixed", "reported", "refused"]

CELL_SIZE_FACTOR = 2.0
"""Objects of half or double their size in training are still recognised; beyond, the person is told."""
WRONG_UNITS_FACTOR = 50.0
"""Cell sizes this far apart are another unit or another kind of imagery."""


@dataclass(frozen=True)
class Finding:
    """One disagreement between a package and a raster.

    Attributes:
        subject: bands, pixel type, value range, cell size or coordinate system.
        verdict: fixed, reported or refused.
        text: what disagrees, in one sentence.
        remedy: what the person can do.
    """

    subject: str
    verdict: Verdict
    text: str
    remedy: str = ""


@dataclass(frozen=True)
class Contract:
    """The outcome for one raster.

    Attributes:
        bands: 0-based bands of the raster to hand over, in the network's order.
        findings: empty when all agrees.
    """

    bands: list[int]
    findings: list[Finding] = field(default_factory=list)

    def raise_refusals(self, uri: str) -> None:
        """Raise when something is refused.

        Raises:
            BadInputError: with all refusals in one message.
        """
        refused = [finding for finding in self.findings if finding.verdict == "refused"]
        if refused:
            raise BadInputError(
                f"The package does not fit {uri}: " + "; ".join(item.text for item in refused) + ".",
                " ".join(item.remedy for item in refused),
            )


def check_contract(
    definition: ModelDefinition,
    raster: RasterInfo,
    *,
    cell_size: float | None = None,
    values: Sequence[tuple[float, float]] | None = None,
) -> Contract:
    """What of a raster disagrees with what the package was trained on.

    Args:
        definition: of the package.
        raster: the imagery.
        cell_size: cell size of the target grid, in units of its CRS; by default the raster's own.
        values: smallest and largest value of a sample, per band of the raster; None when no pixel was read.
    """
    findings: list[Finding] = []
    bands = _bands(definition, raster, findings)
    _pixel_type(definition, raster, bands, values, findings)
    _cell_size(definition, raster, cell_size, findings)
    return Contract(bands, findings)


def _bands(definition: ModelDefinition, raster: RasterInfo, findings: list[Finding]) -> list[int]:
    wanted = definition.extract_bands
    if wanted is None:
        return list(range(raster.band_count))
    names = [name.casefold() for name in raster.band_names]
    # Names decide where training and imagery both have names that mean something, and each occurs once.
    trained = [name.casefold() for name in definition.bands or []]
    meaningful = all(not name.startswith("band") for name in (*names, *trained)) and len(set(names)) == len(
        names
    )
    by_number = [band for band in wanted if isinstance(band, int)]
    if len(by_number) == len(wanted):
        if len(trained) == len(wanted) and meaningful and set(trained) <= set(names):
            named = [names.index(name) for name in trained]
            if named != by_number:
                findings.append(
                    Finding(
                        "bands",
                        "fixed",
                        f"the bands {', '.join(definition.bands or [])} lie elsewhere in this raster: "
                        f"{[band + 1 for band in named]} instead of {[band + 1 for band in by_number]}",
                    )
                )
            return named
        if max(by_number, default=-1) >= raster.band_count:
            findings.append(
                Finding(
                    "bands",
                    "refused",
                    f"the network takes the bands {[band + 1 for band in by_number]}, "
                    f"and the raster has {raster.band_count}",
                    "Use imagery with these bands.",
                )
            )
        return by_number
    missing = [str(band) for band in wanted if isinstance(band, str) and band.casefold() not in names]
    if missing:
        findings.append(
            Finding(
                "bands",
                "refused",
                f"the network takes bands named {', '.join(missing)}, "
                f"and the raster has {', '.join(raster.band_names)}",
                "Name the raster's bands, or use imagery with these bands.",
            )
        )
        return []
    return [band if isinstance(band, int) else names.index(band.casefold()) for band in wanted]


def _pixel_type(
    definition: ModelDefinition,
    raster: RasterInfo,
    bands: list[int],
    values: Sequence[tuple[float, float]] | None,
    findings: list[Finding],
) -> None:
    own = definition.extras.get("Chipline") or {}
    trained_type = own.get("PixelType")
    ranges = _trained_ranges(definition, bands)
    same_type = trained_type is None or trained_type == raster.dtype
    if values is not None and ranges is not None and all(band < len(values) for band in bands):
        for (low, high), band in zip(ranges, bands, strict=True):
            seen_low, seen_high = values[band]
            span = high - low
            above = (seen_high - high) / span
            # A picture may be darker than the training's; hundreds of times darker is another scale.
            other_scale = above > 1 or (seen_high - low) < span / 100
            if other_scale:
                findings.append(
                    Finding(
                        "value range",
                        "reported" if same_type else "refused",
                        f"band {band + 1} has values from {seen_low:g} to {seen_high:g}, "
                        f"and the network was trained on {low:g} to {high:g}",
                        "Rescale the imagery to the values of the training imagery.",
                    )
                )
        if not same_type and not any(item.subject == "value range" for item in findings):
            findings.append(
                Finding(
                    "pixel type",
                    "reported",
                    f"the imagery is {raster.dtype} and the network was trained on {trained_type}, "
                    "with values of the same range",
                )
            )
    elif not same_type:
        findings.append(
            Finding(
                "pixel type",
                "refused",
                f"the imagery is {raster.dtype} and the network was trained on {trained_type}",
                f"Convert the imagery to {trained_type}, scaled as the training imagery was.",
            )
        )


def _trained_ranges(definition: ModelDefinition, bands: list[int]) -> list[tuple[float, float]] | None:
    stats = definition.normalization_stats
    if stats is None:
        return [(0.0, 255.0)] * len(bands) if definition.is_imagenet_normalization else None
    trained = [band for band in definition.extract_bands or [] if isinstance(band, int)]
    chosen = trained if len(trained) == len(bands) else bands
    if any(band >= len(stats.band_min_values) for band in chosen):
        return None
    ranges = [(stats.band_min_values[band], stats.band_max_values[band]) for band in chosen]
    return ranges if all(high > low for low, high in ranges) else None


def _cell_size(
    definition: ModelDefinition, raster: RasterInfo, cell_size: float | None, findings: list[Finding]
) -> None:
    smallest, largest = definition.min_cell_size, definition.max_cell_size
    if smallest is None or largest is None or definition.image_space_used not in (None, "MAP_SPACE"):
        return
    if raster.crs_wkt is None:
        findings.append(
            Finding(
                "coordinate system",
                "reported",
                "the raster has no coordinate system, so that its cell size cannot be compared with the "
                f"training's ({smallest.x:g})",
                "Give the raster its coordinate system.",
            )
        )
        return
    here = CRS.from_wkt(raster.crs_wkt)
    own = cell_size if cell_size is not None else math.hypot(raster.transform[0], raster.transform[3])
    size = own * _metres_per_unit(here)
    trained_units = _metres_per_unit(_crs_of(smallest.wkid) or here)
    low, high = smallest.x * trained_units, largest.x * trained_units
    factor = size / high if size > high else low / size
    if factor <= CELL_SIZE_FACTOR:
        return
    findings.append(
        Finding(
            "cell size",
            "refused" if factor > WRONG_UNITS_FACTOR else "reported",
            f"the imagery's cells are {size:.3g} m, and the network was trained on {low:.3g} m"
            + (f" to {high:.3g} m" if high > low else ""),
            "Use imagery of a similar cell size, or set cell_size to the training's.",
        )
    )


def _crs_of(wkid: int | None) -> CRS | None:
    if wkid is None:
        return None
    try:
        return CRS.from_epsg(wkid)
    except CRSError:
        try:
            return CRS.from_authority("ESRI", wkid)
        except CRSError:
            return None


def _metres_per_unit(crs: CRS) -> float:
    # A degree of latitude; cell sizes are compared by factors, not by per cent.
    if crs.is_geographic:
        return 111_195.0
    return float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
