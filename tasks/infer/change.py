"""Change detection: two dates of one ground, handed to the function as one stack of bands.

Source: ``docs/formats/python-raster-function.md`` §6: the earlier raster's bands first, then the later one's,
``ExtractBands`` counting through both. A pixel counts only where both dates have imagery.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tasks.errors import BadInputError, PackageError
from tasks.imagery import GridReader, Pixels, RasterInfo, Window
from tasks.imagery.identity import unsigned
from tasks.infer.fit import Fit, Samples, check_fit
from tasks.infer.parameters import InferenceTool
from tasks.package import Package
from tasks.package.definition import NormalizationStats

CHANGE_MODEL = "ChangeDetector"
"""``ModelName`` of packages made for pairs."""


class PairReader:
    """Windows of two collections on one grid, as one stack of bands.

    Args:
        before: the earlier date's reader.
        after: the later date's, on the same grid.
    """

    def __init__(self, before: GridReader, after: GridReader) -> None:
        self._before, self._after = before, after
        self.dtype: np.dtype[np.generic] = np.result_type(before.dtype, after.dtype)

    @property
    def band_count(self) -> int:
        """Number of bands of both dates together."""
        return self._before.band_count + self._after.band_count

    def read(self, window: Window) -> Pixels:
        """Both dates' pixels; valid where both are, 0 elsewhere.  # (bands of both, rows, cols)

        Raises:
            RasterError: a raster of one of them cannot be read.
        """
        before = self._before.read(window)
        if not before.valid.any():
            # Nothing can come of it: the second date need not be fetched.
            values = np.zeros((self.band_count, *window.shape), self.dtype)
            return Pixels(values, np.broadcast_to(np.False_, window.shape))
        after = self._after.read(window)
        values = np.concatenate([before.values, after.values]).astype(self.dtype, copy=False)
        valid = before.valid & after.valid
        if not valid.all():
            values[:, ~valid] = 0
        return Pixels(values, valid)


def is_for_pairs(package: Package) -> bool:
    """Whether a package says that it was made for two dates."""
    return package.definition.model_name == CHANGE_MODEL


def bands_of_pair(
    parameters: InferenceTool,
    package: Package,
    wanted: Sequence[int | str] | None,
    before: Sequence[RasterInfo],
    after: Sequence[RasterInfo],
    samples: Samples = (),
) -> tuple[list[int], list[int], Fit]:
    """The bands to hand over of each date's rasters, and how the earlier date's fit; its remarks are of both.

    Args:
        parameters: the tool's parameters.
        package: the package.
        wanted: bands of the stack that the function asks for; None: the definition's ExtractBands.
        before, after: the rasters of each date.
        samples: a look into the rasters of both dates; empty: nothing was read.

    Raises:
        PackageError: the package does not take two dates.
        BadInputError: a raster does not fit the package.
    """
    stack = list(wanted if wanted is not None else package.definition.extract_bands or [])
    half = len(stack) // 2
    halves = [band for band in stack if isinstance(band, int)]
    first, second = halves[:half], [band - half for band in halves[half:]]
    fits = len(halves) == len(stack) == 2 * half > 0
    if not fits or not all(0 <= band < half for band in [*first, *second]):
        raise PackageError(
            f"The package {package.name} takes the bands {stack}, which are no pair of dates.",
            "Use a package trained for change detection: its ExtractBands are 0 to 2n - 1, n bands of the "
            "earlier date and then n of the later one. For single images use classify_pixels.",
        )
    both = []
    looks = (samples[: len(before)], samples[len(before) :])
    for infos, bands, looked, start in zip((before, after), (first, second), looks, (0, half), strict=True):
        # Each date must fit by itself; what the definition says of the stack does not apply to one raster.
        names = package.definition.bands
        own = names[:half] if names is not None and len(names) >= half else None
        statistics = _of_date(package.definition.normalization_stats, start, half)
        one_date = package.definition.model_copy(
            update={"extract_bands": bands, "bands": own, "normalization_stats": statistics}
        )
        fit = check_fit(parameters, one_date, infos, looked)
        for info, found in zip(infos, fit.bands, strict=True):
            if found != bands:
                raise BadInputError(
                    f"The bands of {unsigned(info.uri)} are in another order than the package's.",
                    "Bring the bands of both dates into the order that the package was trained on.",
                )
        both.append(fit)
    remarks = list(dict.fromkeys([*both[0].remarks, *both[1].remarks]))
    return first, second, replace(both[0], remarks=remarks)


def _of_date(stats: NormalizationStats | None, start: int, bands: int) -> NormalizationStats | None:
    """What the statistics of the stack say of the bands of one date, which begin at ``start``."""
    if stats is None or len(stats.band_min_values) != 2 * bands:
        return stats
    values = {name: getattr(stats, name) for name in type(stats).model_fields}
    own = {name: value[start : start + bands] for name, value in values.items() if value is not None}
    return stats.model_copy(update=own)
