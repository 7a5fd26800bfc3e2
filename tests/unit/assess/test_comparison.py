"""The alias never moves to an equal version, always to a clearly better one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.assess import contest as contest_module
from tasks.assess.chip_results import Kind
from tasks.assess.compare import Outcome, compare, shown_rows
from tasks.assess.comparison import CHALLENGER, CHAMPION, DIFFERENCE, compare_objects
from tasks.assess.contest import Contest, Version, check_champion, find_contest, refuse_learnt_from
from tasks.assess.decision import decide
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.errors import BadInputError, NotFoundError, RunError
from tasks.imagery import inspect_raster
from tasks.package import read_definition
from tasks.store import ObjectStore, current, join, read_manifest
from tasks.tracking import ModelVersion

Write = Callable[..., str]

X, Y, SIDE = 500_000.0, 4_000_000.0, 300


@given(st.floats(-1, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 0.5))
def test_the_alias_moves_exactly_when_the_whole_interval_is_above(
    difference: float, below: float, above: float, gain: float
) -> None:
    low, high = difference - below, difference + above
    made = decide("AP", difference, low, high, least_gain=gain, level=0.95)
    assert made.promote == (low > gain)
    assert not decide("AP", 0.0, 0.0, 0.0, least_gain=gain, level=0.95).promote


@pytest.mark.parametrize("values", [(math.nan, math.nan, math.nan), (0.5, math.nan, math.nan)])
def test_what_is_not_defined_decides_nothing(values: tuple[float, float, float]) -> None:
    assert not decide("AP", *values, least_gain=0.0, level=0.95).promote


class World:
    """Random objects on ground of 300 m, an image of it, and detectors of any quality."""

    def __init__(self, write_layer: Write, write_raster: Write, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.write_layer = write_layer
        corners = self.random.uniform((X, Y), (X + SIDE - 10, Y + SIDE - 10), (120, 2))
        self.boxes = np.hstack([corners, corners + self.random.uniform(5, 10, corners.shape)])
        self.classes = self.random.integers(1, 3, len(self.boxes))
        image = np.ones((1, SIDE, SIDE), np.uint8)
        self.image = write_raster(f"image{seed}.tif", image, X, Y + SIDE)
        self.truth = write_layer(
            f"truth{seed}.gpkg",
            [tuple(box) for box in self.boxes],
            classvalue=self.classes,
            classname=["Tree" if value == 1 else "Roof" for value in self.classes],
        )

    def found(self, name: str, share: float) -> str:
        return self.layer(name, self.random.random(len(self.boxes)) < share, jitter=0.5)

    def layer(self, name: str, kept: np.ndarray, *, jitter: float = 0.0) -> str:
        moved = self.boxes[kept] + self.random.normal(0, jitter, (int(kept.sum()), 4))
        return self.write_layer(
            name,
            [tuple(box) for box in moved],
            Class=["Tree" if value == 1 else "Roof" for value in self.classes[kept]],
            Confidence=self.random.random(len(moved)),
        )

    def parameters(self, **values: Any) -> ComparisonParameters:
        return ComparisonParameters.model_validate(
            {
                "model_name": "trees",
                "input_raster": [self.image],
                "ground_truth_features": self.truth,
                "bootstrap_replicates": 200,
                **values,
            }
        )


@pytest.mark.parametrize("seed", range(2))
def test_equal_detectors_differ_by_nothing_and_a_better_one_by_more(
    write_layer: Write, write_raster: Write, seed: int
) -> None:
    world = World(write_layer, write_raster, seed)
    parameters = world.parameters()
    rasters = [inspect_raster(world.image)]
    good, poor = world.found("good.parquet", 0.95), world.found("poor.parquet", 0.6)

    same = compare_objects({CHAMPION: good, CHALLENGER: good}, rasters, parameters)
    assert (same.values[DIFFERENCE] == 0).all()
    assert (same.low[DIFFERENCE] == 0).all()
    assert (same.high[DIFFERENCE] == 0).all()
    assert not decide("AP", *same.of(DIFFERENCE, "ap"), least_gain=0.0, level=0.95).promote

    better = compare_objects({CHAMPION: poor, CHALLENGER: good}, rasters, parameters)
    worse = compare_objects({CHAMPION: good, CHALLENGER: poor}, rasters, parameters)
    assert decide("AP", *better.of(DIFFERENCE, "ap"), least_gain=0.0, level=0.95).promote
    assert not decide("AP", *worse.of(DIFFERENCE, "ap"), least_gain=0.0, level=0.95).promote
    assert np.allclose(better.values[DIFFERENCE], -worse.values[DIFFERENCE], equal_nan=True)
    value, low, high = better.of(DIFFERENCE, "ap")
    assert low < value < high
    assert value == pytest.approx(better.of(CHALLENGER, "ap")[0] - better.of(CHAMPION, "ap")[0])


def test_what_is_hard_for_both_cancels_out(write_layer: Write, write_raster: Write) -> None:
    world = World(write_layer, write_raster, 5)
    # Both miss the same half of the ground; the challenger finds five objects more.
    hard = world.boxes[:, 0] < X + SIDE / 2
    more = ~hard
    more[np.flatnonzero(hard)[:5]] = True
    layers = {CHAMPION: world.layer("few.parquet", ~hard), CHALLENGER: world.layer("more.parquet", more)}
    compared = compare_objects(layers, [inspect_raster(world.image)], world.parameters())
    wide, narrow = (np.subtract(*compared.of(role, "recall")[:0:-1]) for role in (CHALLENGER, DIFFERENCE))
    assert narrow < 0.5 * wide
    assert compared.of(DIFFERENCE, "recall")[0] == pytest.approx(5 / len(hard))


def version(number: str) -> Version:
    return Version(
        uri=f"models:/trees/{number}", number=number, package=f"s3://b/{number}.dlpk", digest=number * 8
    )


def contest(kind: Kind = "objects", champion: str | None = "1", challenger: str = "2") -> Contest:
    return Contest(
        model="trees",
        kind=kind,
        challenger=version(challenger),
        champion=version(champion) if champion else None,
    )


def run(world: World, results: dict[str, str], meets: Contest, **values: Any) -> Outcome:
    return compare(ObjectStore(), world.parameters(**values), meets, results)


def test_the_comparison_is_published_once(write_layer: Write, write_raster: Write) -> None:
    world = World(write_layer, write_raster, 7)
    results = {CHAMPION: world.found("poor.parquet", 0.5), CHALLENGER: world.found("good.parquet", 0.95)}
    first = run(world, results, contest())
    assert first.decision.promote
    assert "all of it above 0" in first.decision.reason
    again = run(world, results, contest())
    assert (again.already_done, again.folder_uri, again.rows) == (True, first.folder_uri, first.rows)
    assert again.decision == first.decision
    store = ObjectStore()
    assert current(store, "outputs/compare_models", "trees") == first.folder_uri
    manifest = read_manifest(store, first.folder_uri)
    assert manifest is not None
    assert manifest.details["versions"]["challenger"]["number"] == "2"
    page = store.get(join(first.folder_uri, "report.html")).decode()
    assert "The alias moves." in page
    table = {(row["class"], row["measure"]): row for row in shown_rows(first.rows)}
    assert table["All", "AP"]["difference"].startswith("+0.")
    assert {name for name, _ in table} == {"Tree", "Roof", "All"}
    # A demanded gain that the interval does not reach keeps the champion.
    assert not run(world, results, contest(), least_gain=0.9).decision.promote
    assert not run(world, results, contest(), block_size=1000).decision.promote


def test_a_model_without_a_champion_gets_its_challenger(write_layer: Write, write_raster: Write) -> None:
    world = World(write_layer, write_raster, 8)
    outcome = run(world, {CHALLENGER: world.found("f.parquet", 0.1)}, contest(champion=None))
    assert outcome.decision.promote
    assert "no champion yet" in outcome.decision.reason
    assert all("Champion" not in row for row in outcome.rows)


def test_classified_pixels_are_paired_block_by_block(
    write_layer: Write, write_raster: Write, world: Path
) -> None:
    del world
    here = World(write_layer, write_raster, 9)
    random = np.random.default_rng(1)
    import shapely
    from affine import Affine
    from rasterio.features import rasterize

    shapes = [(shapely.box(*box), int(value)) for box, value in zip(here.boxes, here.classes, strict=True)]
    transform = Affine(1, 0, X, 0, -1, Y + SIDE)
    true = rasterize(shapes, (SIDE, SIDE), transform=transform, dtype="uint8")

    def classified(name: str, wrong: float) -> str:
        noise = random.random(true.shape) < wrong
        return write_raster(name, np.where(noise, 0, true).astype(np.uint8), X, Y + SIDE)

    good, poor = classified("good.tif", 0.1), classified("poor.tif", 0.4)
    meets = contest("pixels")
    better = run(here, {CHAMPION: poor, CHALLENGER: good}, meets)
    assert better.decision.promote
    assert better.decision.measure == "IOU"
    assert not run(here, {CHAMPION: good, CHALLENGER: good}, meets).decision.promote
    assert not run(here, {CHAMPION: good, CHALLENGER: poor}, meets).decision.promote
    with pytest.raises(BadInputError, match="AP is not measured of pixels"):
        run(here, {CHAMPION: good, CHALLENGER: poor}, meets, measure="AP")
    coarse = write_raster("coarse.tif", true[::2, ::2].copy(), X, Y + SIDE, cell=2.0)
    with pytest.raises(BadInputError, match=r"different grids.*cell_size"):
        run(here, {CHAMPION: good, CHALLENGER: coarse}, meets)


class Registry:
    """Versions by number and alias."""

    def __init__(self, **versions: ModelVersion) -> None:
        self.versions = versions

    def __call__(self, name: str, which: str) -> ModelVersion | None:
        assert name == "trees"
        return self.versions.get(which)


def registered(number: str, kind: str = "ObjectDetection", package: str = "s3://b/p.dlpk") -> ModelVersion:
    return ModelVersion("trees", number, package, number * 8, {"chipline.type": kind})


def test_who_meets_whom(monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = ComparisonParameters(
        model_name="trees", input_raster=["a.tif"], ground_truth_features="t.gpkg"
    )

    def meet(**versions: ModelVersion) -> Contest:
        monkeypatch.setattr(contest_module, "find_version", Registry(**versions))
        return find_contest(parameters)

    found = meet(current=registered("3"), champion=registered("1"))
    assert (found.tool, found.challenger.number, found.over) == ("detect_objects", "3", False)
    assert list(found.versions) == [CHAMPION, CHALLENGER]
    assert meet(current=registered("3"), champion=registered("3")).over
    assert meet(current=registered("3", "ImageClassification")).champion is None
    with pytest.raises(NotFoundError, match="no version or alias 'current'"):
        meet(champion=registered("1"))
    with pytest.raises(BadInputError, match="SuperResolution, which compare_models cannot compare"):
        meet(current=registered("3", "SuperResolution"))
    # Not on imagery, but on chips.
    classes = meet(current=registered("3", "ObjectClassification"))
    assert classes.kind == "labels"
    with pytest.raises(BadInputError, match=r"classes of objects.* Give evaluation_data"):
        _ = classes.tool
    tags = {"chipline.type": "ImageClassification", "chipline.model_type": "CHANGEDETECTOR"}
    dates = ModelVersion("trees", "3", "s3://b/p.dlpk", "3" * 8, tags)
    with pytest.raises(BadInputError, match=r"compares two dates.* Give evaluation_data"):
        _ = meet(current=dates).tool
    with pytest.raises(BadInputError, match="Compare versions of one kind"):
        meet(current=registered("3"), champion=registered("1", "ImageClassification"))

    monkeypatch.setattr(contest_module, "find_version", Registry(current=registered("3")))
    check_champion(contest(champion=None), parameters)
    monkeypatch.setattr(contest_module, "find_version", Registry(champion=registered("4")))
    with pytest.raises(RunError, match="changed during the comparison"):
        check_champion(contest(), parameters)
    with pytest.raises(ValueError, match="name the same version"):
        ComparisonParameters.model_validate({**parameters.model_dump(), "challenger": "champion"})


def test_imagery_that_a_version_learnt_from_is_refused(write_layer: Write, write_raster: Write) -> None:
    from tasks.settings import settings
    from tasks.store import Manifest, Publication

    here = World(write_layer, write_raster, 3)
    folder = join(settings().root, "training-data", "chips", "k")
    store = ObjectStore()
    identity = inspect_raster(here.image).identity
    Publication(store, folder).finish(
        Manifest(
            kind="training-data",
            name="chips",
            run_key="k",
            inputs=[{"role": "raster", "uri": here.image, "identity": identity}],
        )
    )
    tags = {"chipline.type": "ObjectDetection"}
    tags["chipline.training_data"] = json.dumps([{"manifest": f"{folder}/manifest.json"}, {"and": "1 more"}])
    learnt = contest_module._version(ModelVersion("trees", "2", "s3://b/2.dlpk", "d", tags))
    meets = contest().model_copy(update={"challenger": learnt})
    with pytest.raises(BadInputError, match=r"models:/trees/2 learnt from .*image3\.tif.*mask_features"):
        refuse_learnt_from(store, here.parameters(), meets)
    refuse_learnt_from(store, here.parameters(mask_features=here.truth), meets)
    refuse_learnt_from(store, here.parameters(), contest())


def test_what_a_tag_cannot_hold_is_read_from_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetched(uri: str, _store: ObjectStore) -> Any:
        data = [{"uri": f"{uri}/data", "identity": uri}, {"uri": "s3://b/old", "identity": "of an ancestor"}]
        definition = read_definition(json.dumps({"Chipline": {"Metrics": {"training_data": data}}}))
        return SimpleNamespace(definition=definition)

    monkeypatch.setattr(contest_module, "fetch_package", fetched)
    meets = contest_module.with_lineage(ObjectStore(), contest())
    for version in meets.versions.values():
        assert version.learnt_from[-2:] == [version.package, "of an ancestor"]
        assert version.training_data[-1] == "s3://b/old/manifest.json"


@pytest.mark.parametrize("bounded", [False, True])
def test_chips_that_a_version_learnt_from_are_refused(world: Path, bounded: bool) -> None:
    from tasks.settings import settings
    from tasks.store import Manifest, Publication

    del world
    store = ObjectStore()
    folders = {}
    for name, raster, mask in (("west", "w", None), ("east", "e", None), ("again", "w", "mask.gpkg")):
        folders[name] = join(settings().root, "training-data", name, name)
        Publication(store, folders[name]).finish(
            Manifest(
                kind="training-data",
                name=name,
                run_key=name,
                parameters={"input_mask_polygons": mask if bounded else None},
                inputs=[{"role": "raster", "uri": f"{raster}.tif", "identity": raster}],
            )
        )
    tags = {"chipline.type": "ObjectClassification"}
    listed = [{"manifest": f"{folders['west']}/manifest.json", "identity": "west"}]
    tags["chipline.training_data"] = json.dumps(listed)
    learnt = contest_module._version(ModelVersion("trees", "2", "s3://b/2.dlpk", "d", tags))
    meets = contest("labels").model_copy(update={"challenger": learnt})

    def judge(name: str) -> None:
        chips = ComparisonParameters(model_name="trees", evaluation_data=folders[name])
        refuse_learnt_from(store, chips, meets)

    judge("east")
    with pytest.raises(BadInputError, match=r"models:/trees/2 learnt from .*west, which"):
        judge("west")
    if bounded:
        judge("again")
    else:
        with pytest.raises(BadInputError, match=r"learnt from w\.tif, .*input_mask_polygons"):
            judge("again")
