"""Vector labels held in memory: polygons, lines or points with a class value, from a file or the store."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import shapely

from tasks.labels.records import read_all
from tasks.labels.schema import ClassSchema
from tasks.labels.sources import read_frame, split_layer

Bounds = tuple[float, float, float, float]

__all__ = ["Bounds", "VectorLabels", "read_frame", "read_vector_labels", "split_layer"]


@dataclass(frozen=True)
class VectorLabels:
    """Labels as valid polygons in one CRS, in the order of the file; a later record lies on top.

    Attributes:
        uri: where they come from.
        crs_wkt: the CRS of ``geometries``.
        geometries: (features,) shapely polygons and multipolygons, none empty.
        values: (features,) int64 class value of each.
        schema: the classes that occur in the file.
        class_value_field: the field the values come from; None if every record is class 1.
        repaired: features whose rings were invalid and have been repaired.
        empty: features left out because they have no geometry or no area.
        unprojectable: features left out because they have no place in the target CRS.
    """

    uri: str
    crs_wkt: str
    geometries: npt.NDArray[np.object_]
    values: npt.NDArray[np.int64]
    schema: ClassSchema
    class_value_field: str | None = None
    repaired: int = 0
    empty: int = 0
    unprojectable: int = 0
    source_crs: str = ""

    def __len__(self) -> int:
        return len(self.geometries)

    @cached_property
    def tree(self) -> shapely.STRtree:
        """The spatial index over ``geometries``."""
        return shapely.STRtree(self.geometries)

    @cached_property
    def bounds(self) -> Bounds:
        """(xmin, ymin, xmax, ymax) of all labels, map units."""
        xmin, ymin, xmax, ymax = (float(value) for value in shapely.total_bounds(self.geometries))
        return xmin, ymin, xmax, ymax

    def query(self, bounds: Bounds) -> npt.NDArray[np.intp]:
        """Ascending indices of the labels that touch the rectangle (xmin, ymin, xmax, ymax), map units."""
        return np.sort(self.tree.query(shapely.box(*bounds), predicate="intersects"))


def read_vector_labels(
    uri: str,
    classvalue_field: str | None = None,
    target_crs_wkt: str | None = None,
    *,
    buffer_radius: float = 0.0,
) -> VectorLabels:
    """Read labels and bring them into the raster's CRS.

    Args:
        uri: any vector source that GDAL reads (GeoPackage, GeoJSON, FlatGeobuf, Shapefile with its side
            files or zipped, file geodatabase, KML, GML, MapInfo, CSV with WKT …) or GeoParquet, in the
            store or on disk. ``…|layername=trees`` picks a layer.
        classvalue_field: integer field with the class value. None searches ``value``, then
            ``classvalue`` (any case); if neither exists every record is class 1.
        target_crs_wkt: CRS to reproject to; None keeps the labels' own.
        buffer_radius: grows every label, in the linear unit of the labels' own CRS; turns points into
            circles and lines into strips.

    Raises:
        NotFoundError: no such object.
        LabelError: unreadable, no CRS, no features, an unknown field, class values that are no positive
            integers, points or lines without a buffer.
    """
    labels, stream = read_all(
        uri,
        classvalue_field=classvalue_field,
        target_crs_wkt=target_crs_wkt,
        buffer_radius=buffer_radius,
    )
    return VectorLabels(
        uri=uri,
        crs_wkt=stream.crs_wkt,
        geometries=labels.geometries,
        values=labels.values,
        schema=stream.schema(),
        class_value_field=stream.class_value_field,
        repaired=stream.repaired,
        empty=stream.empty,
        unprojectable=stream.unprojectable,
        source_crs=stream.source_crs,
    )
