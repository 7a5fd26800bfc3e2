"""Does a package fit the imagery? Said before any device is touched, with the true cause.

The order of the checks: bands, pixel type, value range, cell size, kind of coordinate system, nodata. What
agrees is not mentioned; what can be mended without guessing is mended and reported; the rest is refused or,
where the result may still be good, reported. docs/formats/emd-dlpk.md has the table.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from pyproj import CRS, Transformer
from pyproj.exceptions import CRSError, ProjError

from tasks.errors import BadInputError
from tasks.imagery import RasterInfo, RasterSample
from tasks.package.definition import ModelDefinition

Verdict = Literal["fixed", "reported", "refused"]

RESAMPLED_BEYOND = 1.5
"""Objects of up to this factor larger or smaller than in training are recognised as they are."""
LARGEST_ENLARGEMENT = 4.0
"""Cells coarser than the training's by more than this hold no detail that resampling could bring back."""
WRONG_UNITS_FACTOR = 50.0
"""Cell sizes or values this far apart are another unit or another kind of imagery."""
REPORTED_DRIFT = 2.0
"""Values that lie this many standard deviations of the training's away are reported."""
LARGEST_STRETCH = 1.5
"""Cells of a geographic system whose sides differ by more than this on the ground are reported."""
_REPORTED_ZEROS = 0.01
_METRES_PER_DEGREE = 111_195.0


@dataclass(frozen=True)
class Finding:
    """One disagreement between a package and a raster.

    Attributes:
        subject: bands, pixel type, value range, drift, cell size, coordinate system or nodata.
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
        cell_size: what the target grid should have, in units of its CRS; None: the imagery's own fits.
        drift: how far the values lie from the training's, in its standard deviations; None: not known.
    """

    bands: list[int]
    findings: list[Finding] = field(default_factory=list)
    cell_size: float | None = None
    drift: float | None = None

    def raise_refusals(self, uri: str) -> None:
        """Raise when something is refused.

        Raises:
            BadInputError: with all refusals in one message.
        """
        refused = [finding for finding in self.findings if finding.verdict == "refused"]
        if refused:
            raise BadInputError(
                f"The package does not fit {uri}: " + "; ".join(item.text for item in refused) + ".",
                " ".join(dict.fromkeys(item.remedy for item in refused)),
            )


def check_contract(
    definition: ModelDefinition,
    raster: RasterInfo,
    *,
    cell_size: float | None = None,
    out_sr: int | None = None,
    sample: RasterSample | None = None,
) -> Contract:
    """What of a raster disagrees with what the package was trained on.

    Args:
        definition: of the package.
        raster: the imagery.
        cell_size: cell size of the target grid, where a person gives it, in units of its CRS.
        out_sr: EPSG code of the target grid; by default the raster's own CRS.
        sample: some values of the raster; None when no pixel was read.
    """
    findings: list[Finding] = []
    bands = _bands(definition, raster, findings)
    seen = sample if sample is not None and all(band < len(sample.bands) for band in bands) else None
    _pixel_type(definition, raster, bands, seen, findings)
    drift = None if seen is None else _drift(definition, bands, seen, findings)
    wanted = _cell_size(definition, raster, cell_size, out_sr, findings)
    _coordinate_system(definition, raster, out_sr, findings)
    _nodata(raster, sample, findings)
    return Contract(bands, findings, wanted, drift)


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
    sample: RasterSample | None,
    findings: list[Finding],
) -> None:
    trained_type = _own(definition).get("PixelType")
    same_type = trained_type is None or trained_type == raster.dtype
    ranges = _trained_ranges(definition, bands)
    if sample is None or ranges is None:
        if not same_type:
            findings.append(
                Finding(
                    "pixel type",
                    "refused",
                    f"the imagery is {raster.dtype} and the network was trained on {trained_type}",
                    f"Convert the imagery to {trained_type}, scaled as the training imagery was.",
                )
            )
        return
    judged = [
        finding
        for (low, high), band in zip(ranges, bands, strict=True)
        if (finding := _value_range(low, high, band, sample, raster.dtype, same_type=same_type)) is not None
    ]
    findings += judged
    if not same_type and not judged:
        findings.append(
            Finding(
                "pixel type",
                "reported",
                f"the imagery is {raster.dtype} and the network was trained on {trained_type}, "
                "with values of the same range",
            )
        )


def _value_range(
    low: float, high: float, band: int, sample: RasterSample, dtype: str, *, same_type: bool
) -> Finding | None:
    seen, span = sample.bands[band], high - low
    # A picture may be darker than the training's; hundreds of times darker is another scale.
    above, below = (seen.high - high) / span, span / max(seen.high - low, span * 1e-9)
    if above <= 1 and below < 100:
        return None
    fraction = np.dtype(dtype).kind == "f"  # whole numbers of one type that are small: a dark picture
    clearly = above >= WRONG_UNITS_FACTOR or (fraction and below >= 100)
    return Finding(
        "value range",
        "refused" if clearly or not same_type else "reported",
        f"band {band + 1} has values from {seen.low:g} to {seen.high:g}, "
        f"and the network was trained on {low:g} to {high:g}",
        "Rescale the imagery to the values of the training imagery.",
    )


def _trained_ranges(definition: ModelDefinition, bands: list[int]) -> list[tuple[float, float]] | None:
    stats = definition.normalization_stats
    if stats is None:
        return [(0.0, 255.0)] * len(bands) if definition.is_imagenet_normalization else None
    chosen = _trained_bands(definition, bands)
    if any(band >= len(stats.band_min_values) for band in chosen):
        return None
    ranges = [(stats.band_min_values[band], stats.band_max_values[band]) for band in chosen]
    return ranges if all(high > low for low, high in ranges) else None


def _trained_bands(definition: ModelDefinition, bands: list[int]) -> list[int]:
    """The bands as training's statistics count them."""
    trained = [band for band in definition.extract_bands or [] if isinstance(band, int)]
    return trained if len(trained) == len(bands) else bands


def _drift(
    definition: ModelDefinition, bands: list[int], sample: RasterSample, findings: list[Finding]
) -> float | None:
    """Largest distance of a band's values from the training's, in the training's standard deviations.

    Of two normal distributions the 2-Wasserstein distance, sqrt((m1 - m2)^2 + (s1 - s2)^2), divided by s2.
    """
    trained = _trained_moments(definition, bands)
    if trained is None:
        return None
    worst, where = 0.0, 0
    for (mean, std), band in zip(trained, bands, strict=True):
        seen = sample.bands[band]
        distance = math.hypot(seen.mean - mean, seen.std - std) / std
        if distance > worst:
            worst, where = distance, band
    if worst > REPORTED_DRIFT and not any(item.subject == "value range" for item in findings):
        mean, std = trained[bands.index(where)]
        seen = sample.bands[where]
        findings.append(
            Finding(
                "drift",
                "reported",
                f"the imagery looks different from the training's: drift score {worst:.1f} (band {where + 1} "
                f"has {seen.mean:.4g} ± {seen.std:.3g}, the training {mean:.4g} ± {std:.3g})",
                "Look at the result with care; training with chips of such imagery helps.",
            )
        )
    return worst


def _trained_moments(definition: ModelDefinition, bands: list[int]) -> list[tuple[float, float]] | None:
    """Mean and standard deviation of each band in training, where the package states them."""
    means: Sequence[Any] | None = None
    stds: Sequence[Any] | None = None
    stats, stated = definition.normalization_stats, definition.extras.get("AllTilesStats")
    if stats is not None:
        chosen = _trained_bands(definition, bands)
        means, stds = stats.band_mean_values, stats.band_std_values
        if means is None or stds is None or max(chosen, default=0) >= min(len(means), len(stds)):
            return None
        means, stds = [means[band] for band in chosen], [stds[band] for band in chosen]
    elif isinstance(stated, list) and len(stated) == len(bands):
        # Per band of the chips, which are the network's (docs/formats/training-data.md).
        means = [item.get("Mean") if isinstance(item, dict) else None for item in stated]
        stds = [item.get("StdDev") if isinstance(item, dict) else None for item in stated]
    pairs = [
        (float(mean), float(std))
        for mean, std in zip(means or [], stds or [], strict=True)
        if isinstance(mean, int | float) and isinstance(std, int | float) and std > 0
    ]
    return pairs if bands and len(pairs) == len(bands) else None


def _cell_size(
    definition: ModelDefinition,
    raster: RasterInfo,
    given: float | None,
    out_sr: int | None,
    findings: list[Finding],
) -> float | None:
    """What the target grid should have; None where the imagery's own, or the given one, stays."""
    smallest, largest = definition.min_cell_size, definition.max_cell_size
    if not _in_map_space(definition) or smallest is None or largest is None or raster.crs_wkt is None:
        return None
    here = CRS.from_wkt(raster.crs_wkt)
    target = _crs_of(out_sr) or here
    trained_units = _metres_per_unit(_crs_of(smallest.wkid) or here)
    low, high = sorted((smallest.x * trained_units, largest.x * trained_units))
    if not low > 0:
        return None
    if given is not None:
        size = given * _metres_per_unit(target)
    else:
        size = math.hypot(raster.transform[0], raster.transform[3]) * _metres_per_unit(here)
    factor = size / high if size > high else low / size
    if factor <= RESAMPLED_BEYOND:
        return None
    nearest = high if size > high else low
    enlarging = size > high
    trained = f"{low:.3g} m" + (f" to {high:.3g} m" if high > low else "")
    text = f"the imagery's cells are {size:.3g} m, and the network was trained on {trained}"
    if factor > WRONG_UNITS_FACTOR:
        remedy = "Use imagery of a similar cell size, or set cell_size to the training's."
        findings.append(Finding("cell size", "refused", text, remedy))
        return None
    if given is not None:
        text = f"the given cell_size is {size:.3g} m, and the network was trained on {trained}"
        findings.append(
            Finding("cell size", "reported", text, "Leave cell_size empty to compute on the training's.")
        )
        return None
    if enlarging and factor > _largest_enlargement(definition):
        remedy = "Use imagery of a similar cell size; resampling does not bring back its detail."
        findings.append(Finding("cell size", "reported", text, remedy))
        return None
    wanted = nearest / _metres_per_unit(target)
    findings.append(
        Finding(
            "cell size",
            "fixed",
            f"{text}: it is resampled to {nearest:.3g} m",
            "Set cell_size to compute on other cells.",
        )
    )
    return wanted


def _largest_enlargement(definition: ModelDefinition) -> float:
    """Networks of super-resolution are made to be given imagery coarser by their factor."""
    factor = definition.extras.get("downsample_factor")
    if not isinstance(factor, int | float):
        return LARGEST_ENLARGEMENT
    return max(LARGEST_ENLARGEMENT, RESAMPLED_BEYOND * factor)


def _coordinate_system(
    definition: ModelDefinition, raster: RasterInfo, out_sr: int | None, findings: list[Finding]
) -> None:
    smallest = definition.min_cell_size
    if not _in_map_space(definition) or smallest is None:
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
    here, trained = CRS.from_wkt(raster.crs_wkt), _crs_of(smallest.wkid)
    target = _crs_of(out_sr) or here
    if trained is None or trained.is_geographic or not target.is_geographic:
        return
    # Degrees of longitude shrink towards the poles: square cells become upright rectangles on the ground.
    latitude = _latitude(raster, here)
    stretch = math.inf if abs(latitude) >= 89.9 else 1 / math.cos(math.radians(latitude))
    if stretch > LARGEST_STRETCH:
        findings.append(
            Finding(
                "coordinate system",
                "reported",
                f"the imagery is in degrees and the network was trained in a projected system: at latitude "
                f"{latitude:.0f} a cell is {stretch:.1f} times as high as wide on the ground",
                "Set out_sr to a projected coordinate system.",
            )
        )


def _latitude(raster: RasterInfo, crs: CRS) -> float:
    xmin, ymin, xmax, ymax = raster.bounds
    x, y = (xmin + xmax) / 2, (ymin + ymax) / 2
    if crs.is_geographic:
        return y
    try:
        return float(Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True).transform(x, y)[1])
    except ProjError:
        return 0.0


def _nodata(raster: RasterInfo, sample: RasterSample | None, findings: list[Finding]) -> None:
    kind = np.dtype(raster.dtype).kind
    if raster.nodata is not None and kind in "iu" and not _fits(raster.nodata, raster.dtype):
        findings.append(
            Finding(
                "nodata",
                "reported",
                f"the raster's NoData value {raster.nodata:g} cannot occur in {raster.dtype}, so that none "
                "of its pixels is NoData",
                "Set the NoData value that the raster really uses.",
            )
        )
    if sample is None:
        return
    marked = raster.nodata is not None or "alpha" in raster.colorinterp
    if not sample.bands:
        findings.append(
            Finding(
                "nodata",
                "reported",
                "none of the pixels that were looked at holds data",
                "Check the raster's NoData value and its mask.",
            )
        )
    elif not marked and kind == "f" and sample.valid < 1:
        findings.append(
            Finding(
                "nodata",
                "fixed",
                f"{1 - sample.valid:.0%} of the pixels that were looked at are NaN or masked and the raster "
                "declares no NoData: they are left out",
            )
        )
    if not marked and sample.zero >= _REPORTED_ZEROS:
        findings.append(
            Finding(
                "nodata",
                "reported",
                f"{sample.zero:.0%} of the pixels that were looked at are 0 in every band and the raster "
                "declares no NoData: they are taken for imagery",
                "Declare 0 as NoData if it is the fill value.",
            )
        )


def _fits(value: float, dtype: str) -> bool:
    limits = np.iinfo(dtype)
    return math.isfinite(value) and limits.min <= value <= limits.max and value == int(value)


def _own(definition: ModelDefinition) -> dict[str, Any]:
    own = definition.extras.get("Chipline")
    return own if isinstance(own, dict) else {}


def _in_map_space(definition: ModelDefinition) -> bool:
    return definition.image_space_used in (None, "MAP_SPACE")


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
        return _METRES_PER_DEGREE
    return float(crs.axis_info[0].unit_conversion_factor) if crs.axis_info else 1.0
