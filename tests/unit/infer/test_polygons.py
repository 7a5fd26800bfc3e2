import numpy as np
import shapely
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tasks.infer.polygons import canonical_order, normalised, without_collinear_vertices


def array(*geometries: shapely.Geometry) -> NDArray[np.object_]:
    return np.array(geometries, dtype=object)


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=25, unique=True),
    st.integers(0, 1000),
)
def test_cutting_and_joining_leaves_no_trace(cells: list[tuple[int, int]], seed: int) -> None:
    """Pixels joined in one go, and joined from pieces with extra vertices: one and the same geometry."""
    whole = shapely.union_all([shapely.box(x, y, x + 1, y + 1) for x, y in cells])
    dense = shapely.segmentize(whole, 0.25)
    chooser = np.random.default_rng(seed)
    turned = []
    for part in shapely.get_parts(dense):
        ring = shapely.get_coordinates(part.exterior)[:-1]
        ring = np.roll(ring, int(chooser.integers(len(ring))), axis=0)[:: int(chooser.choice([-1, 1]))]
        turned.append(shapely.Polygon(ring, [hole.coords for hole in part.interiors]))
    chooser.shuffle(turned)
    again = shapely.MultiPolygon(turned) if len(turned) > 1 else turned[0]
    first, second = normalised(without_collinear_vertices(array(whole, again)))
    assert shapely.to_wkb(first) == shapely.to_wkb(second)
    assert first.area == len(cells)
    for part in shapely.get_parts(first):
        assert part.exterior.is_ccw
        ring = shapely.get_coordinates(part.exterior)
        steps = np.diff(np.concatenate([ring, ring[1:2]]), axis=0)
        assert ((steps[:-1] * steps[1:]).sum(axis=1) == 0).all()  # only right angles are left


def test_a_tolerance_forgives_small_bends() -> None:
    bent = shapely.Polygon([(0, 0), (5, 0.01), (10, 0), (10, 10), (0, 10)])
    assert len(without_collinear_vertices(array(bent))[0].exterior.coords) == 6
    assert len(without_collinear_vertices(array(bent), tolerance=0.1)[0].exterior.coords) == 5
    sliver = shapely.Polygon([(0, 0), (5, 0.01), (10, 0)])
    assert not without_collinear_vertices(array(sliver), tolerance=1.0)[0].is_empty


def test_the_order_does_not_depend_on_the_input() -> None:
    chooser = np.random.default_rng(0)
    corners = chooser.integers(0, 4, (60, 2))
    geometries = np.asarray(shapely.box(*corners.T, *(corners + 1).T), dtype=object)
    names = chooser.choice(["a", "b"], 60)
    scores = chooser.integers(0, 2, 60) / 2
    rows = []
    for _ in range(3):
        shuffled = chooser.permutation(60)
        order = shuffled[canonical_order(geometries[shuffled], names[shuffled], scores[shuffled])]
        rows.append([(geometries[i].wkt, names[i], scores[i]) for i in order])
    assert rows[0] == rows[1] == rows[2]
    tops = [shapely.from_wkt(row[0]).bounds[3] for row in rows[0]]
    assert tops == sorted(tops, reverse=True)
    assert canonical_order(array(), [], np.empty(0)).tolist() == []


def test_forgiven_bends_do_not_add_up() -> None:
    circle = shapely.Point(0, 0).buffer(100, quad_segs=256)
    thinned = without_collinear_vertices(array(circle), tolerance=0.5)[0]
    assert len(thinned.exterior.coords) < 200
    assert shapely.hausdorff_distance(circle, thinned) < 1.0
