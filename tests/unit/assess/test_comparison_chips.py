"""Champion and challenger on chips: numbers as in a training's validation, of pairs that are drawn alike."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import shapely
from sklearn.metrics import f1_score, jaccard_score, precision_score, recall_score

from tasks.assess.chip_results import ChipOutcome, ChipResults, Kind
from tasks.assess.chips import object_intervals
from tasks.assess.comparison import CHALLENGER, CHAMPION, DIFFERENCE, Compared
from tasks.assess.comparison_chips import compare_chips
from tasks.assess.decision import decide
from tasks.assess.objects import Detections, Truths, average_precision, match_objects
from tasks.assess.parameters_compare import ComparisonParameters
from tasks.errors import BadInputError

CLASSES = {3: "Round", 7: "Square"}
NAMES = list(CLASSES.values())


def parameters(**values: object) -> ComparisonParameters:
    given = {"model_name": "m", "evaluation_data": "chips", "bootstrap_replicates": 100, **values}
    return ComparisonParameters.model_validate(given)


def results(kind: Kind, chips: Sequence[ChipOutcome]) -> ChipResults:
    return ChipResults(kind=kind, classes=CLASSES, device="cpu", chips=list(chips))


def outcome(number: int, **values: object) -> ChipOutcome:
    left = 64.0 * number
    place = None if number % 5 == 4 else (left, 0.0, left + 64, 64.0)
    return ChipOutcome.model_validate(
        {"stem": str(number), "footprint": place, "rows": 64, "cols": 64, **values}
    )


def wkb(x: float, y: float, edge: float = 12) -> str:
    return str(shapely.to_wkb(shapely.box(x, y, x + edge, y + edge), hex=True))


class Ground:
    """Chips with squares, and what a detector, a classifier of pixels or of chips says of them."""

    def __init__(self, seed: int, chips: int = 30) -> None:
        self.random = np.random.default_rng(seed)
        self.boxes = [self.random.uniform(0, 50, (4, 2)).round() for _ in range(chips)]
        self.names = [[NAMES[i] for i in self.random.integers(0, 2, 4)] for _ in range(chips)]
        self.masks = [self.random.choice([0, 3, 7], (8, 8)) for _ in range(chips)]

    def objects(self, share: float) -> ChipResults:
        chips = []
        for number, (boxes, names) in enumerate(zip(self.boxes, self.names, strict=True)):
            found = []
            for (x, y), name in zip(boxes, names, strict=True):
                moved = (x, y) if self.random.random() < share else (x + 40, y)
                score = float(self.random.random())
                found.append((name, score, wkb(*moved)))
            true = [(name, wkb(x, y)) for (x, y), name in zip(boxes, names, strict=True)]
            chips.append(outcome(number, true_objects=true, found_objects=found))
        return results("objects", chips)

    def pixels(self, share: float) -> tuple[ChipResults, np.ndarray]:
        chips, all_found = [], []
        for number, mask in enumerate(self.masks):
            right = self.random.random(mask.shape) < share
            found = np.where(right, mask, self.random.choice([0, 3, 7], mask.shape))
            pairs = [(t, f, int(((mask == t) & (found == f)).sum())) for t in (0, 3, 7) for f in (0, 3, 7)]
            chips.append(outcome(number, pixels=[pair for pair in pairs if pair[2]]))
            all_found.append(found)
        return results("pixels", chips), np.stack(all_found)

    def labels(self, share: float, several: bool) -> tuple[ChipResults, np.ndarray, np.ndarray]:
        count = len(self.boxes)
        true = self.random.random((count, 2)) < 0.5
        if not several:
            true[:, 1] = ~true[:, 0]
        found = np.where(self.random.random((count, 1)) < share, true, ~true)
        chips = [
            outcome(n, true_labels=np.array(NAMES)[true[n]], found_labels=np.array(NAMES)[found[n]])
            for n in range(count)
        ]
        return results("labels", chips), true, found


def of(compared: Compared, role: str, name: str, measure: str) -> float:
    return float(compared.values[role][compared.names.index(name), compared.measures.index(measure)])


def promoted(compared: Compared, measure: str) -> bool:
    difference = compared.of(DIFFERENCE, measure)
    return decide(measure, *difference, least_gain=0.0, level=0.95).promote


def test_objects_of_chips() -> None:
    ground = Ground(1)
    good, poor = ground.objects(0.95), ground.objects(0.4)
    better = compare_chips({CHAMPION: poor, CHALLENGER: good}, parameters())
    worse = compare_chips({CHAMPION: good, CHALLENGER: poor}, parameters())
    assert better.names == [*NAMES, "All"]
    assert promoted(better, "ap")
    assert not promoted(worse, "ap")
    same = compare_chips({CHAMPION: good, CHALLENGER: good}, parameters())
    assert (same.values[DIFFERENCE] == 0).all()
    assert (same.low[DIFFERENCE] == same.high[DIFFERENCE]).all()
    assert not promoted(same, "ap")
    # As the validation of a training counts: chip by chip, without what the chip's edge cuts.
    matches = []
    for chip in good.chips:
        shapes = shapely.from_wkb([shape for _, shape in chip.true_objects])
        bounds = shapely.bounds(shapes).reshape(-1, 4)
        cut = np.asarray((bounds <= 1).any(axis=1) | (bounds >= 63).any(axis=1), bool).reshape(-1)
        found = Detections(
            shapely.from_wkb([shape for _, _, shape in chip.found_objects]),
            np.array([NAMES.index(name) for name, *_ in chip.found_objects]),
            np.array([score for _, score, _ in chip.found_objects]),
        )
        truths = Truths(shapes, np.array([NAMES.index(name) for name, _ in chip.true_objects]), cut)
        matches.append(match_objects(found, truths, 0.5))
    for place, name in enumerate(NAMES):
        scores = np.concatenate([m.scores[m.counted & (m.classes == place)] for m in matches])
        hits = np.concatenate([m.truth[m.counted & (m.classes == place)] >= 0 for m in matches])
        count = sum(int((m.truth_counted & (m.truth_classes == place)).sum()) for m in matches)
        assert of(better, CHALLENGER, name, "ap") == pytest.approx(average_precision(scores, hits, count))
    # Chips of two by two make a block; a chip without a place is one of its own.
    assert better.blocks == 15 + 6
    assert object_intervals(matches, np.arange(30), [0, 1], NAMES)


def test_pixels_of_chips_equal_scikit_learn() -> None:
    ground = Ground(2)
    (good, found), (poor, _) = ground.pixels(0.9), ground.pixels(0.5)
    compared = compare_chips({CHAMPION: poor, CHALLENGER: good}, parameters())
    assert compared.names == ["background", *NAMES, "All"]
    truth, answer = np.stack(ground.masks).ravel(), found.ravel()
    for value, name in CLASSES.items():
        for measure, score in (("iou", jaccard_score), ("f1", f1_score), ("precision", precision_score)):
            expected = score(truth == value, answer == value)
            assert of(compared, CHALLENGER, name, measure) == pytest.approx(expected)
    mean = jaccard_score(truth, answer, labels=[3, 7], average="macro")
    assert compared.of(CHALLENGER, "iou")[0] == pytest.approx(mean)
    assert promoted(compared, "iou")


@pytest.mark.parametrize("several", [False, True])
def test_classes_of_chips_equal_scikit_learn(several: bool) -> None:
    ground = Ground(3)
    good, true, found = ground.labels(0.95, several)
    poor = good.model_copy(
        update={
            "chips": [
                chip.model_copy(update={"found_labels": ["Triangle"] if n % 2 else chip.found_labels})
                for n, chip in enumerate(good.chips)
            ]
        }
    )
    compared = compare_chips({CHAMPION: poor, CHALLENGER: good}, parameters())
    assert compared.names == [*NAMES, "Triangle", "All"]
    assert compared.measures == ("f1", "precision", "recall")
    for measure, score in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        expected = score(true, found, average=None)
        assert [of(compared, CHALLENGER, name, measure) for name in NAMES] == pytest.approx(list(expected))
        assert compared.of(CHALLENGER, measure)[0] == pytest.approx(expected.mean())
    assert promoted(compared, "f1")


def test_chips_without_anything_to_find_are_refused() -> None:
    for kind in ("objects", "pixels", "labels"):
        nothing = results(kind, [outcome(0), outcome(1)])
        with pytest.raises(BadInputError, match="of the evaluation set"):
            compare_chips({CHALLENGER: nothing}, parameters())


def test_one_evaluation_set_is_named() -> None:
    with pytest.raises(ValueError, match="give input_raster and ground_truth_features, or evaluation_data"):
        ComparisonParameters(model_name="m")
    with pytest.raises(ValueError, match="give ground_truth_features, or"):
        ComparisonParameters(model_name="m", input_raster=["a.tif"])
    with pytest.raises(ValueError, match="leave mask_features empty"):
        parameters(mask_features="m.gpkg")
    # A deployment's own sample does not stand in the way.
    chips = parameters(input_raster=["a.tif"], ground_truth_features="t.gpkg")
    assert chips == parameters()
    assert chips.evaluated_on == "chips"
