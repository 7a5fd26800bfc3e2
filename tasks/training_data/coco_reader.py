"""Reading a COCO label file of any size: one pass, item by item, into arrays.

What is tolerated: keys in any order, unknown keys, gaps in the numbers, numbers or texts as ids, pictures in
sub-folders, objects with an outline but no box. Crowds are left out and counted.
"""

from __future__ import annotations

import json
import logging
import math
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from tasks.errors import NotFoundError, TrainingDataError
from tasks.labels.schema import ClassSchema

LABELS = "labels.json"

_CHUNK = 1 << 20
_REMEDY = "Export the training data again, or correct the file."


@dataclass(frozen=True)
class CocoLabels:
    """The labels of all pictures.

    Attributes:
        files: the position of each picture, by the name of its file.
        starts: (pictures + 1,) where the objects of each picture start.
        values: (objects,) class values, ordered by picture.
        edges: (objects, 4) xmin, ymin, xmax, ymax, pixels.
        crowds: objects that were left out, because they stand for many.
    """

    files: dict[str, int]
    starts: npt.NDArray[np.int64]
    values: npt.NDArray[np.int64]
    edges: npt.NDArray[np.float64]
    crowds: int

    def boxes_of(self, name: str) -> list[tuple[int, float, float, float, float]]:
        """The boxes of a picture: (class value, xmin, ymin, xmax, ymax), pixels, as the file states them."""
        here = self.files[name]
        part = slice(int(self.starts[here]), int(self.starts[here + 1]))
        return [
            (value, xmin, ymin, xmax, ymax)
            for value, (xmin, ymin, xmax, ymax) in zip(
                self.values[part].tolist(), self.edges[part].tolist(), strict=True
            )
        ]


def classes_in(path: Path) -> ClassSchema | None:
    """The categories of a label file as classes; None where it names none.

    Ids that are positive whole numbers are class values. Otherwise classes are numbered from 1, in the
    order of the ids.
    """
    categories = [item for key, item in _items(path) if key == "categories"]
    if not categories:
        return None
    try:
        names = {_key(item["id"]): str(item["name"]) for item in categories}
    except (KeyError, TypeError) as error:
        raise TrainingDataError(f"A category in {path} lacks {error}.", _REMEDY) from error
    if all(key.isdecimal() and int(key) > 0 for key in names):
        return ClassSchema.from_values({int(key): name for key, name in names.items()})
    ordered = sorted(names, key=lambda key: (not key.isdecimal(), int(key) if key.isdecimal() else 0, key))
    return ClassSchema.from_values({number: names[key] for number, key in enumerate(ordered, start=1)})


def read_labels(path: Path, classes: ClassSchema) -> CocoLabels:
    """All labels of a file.

    Raises:
        NotFoundError: no such file.
        TrainingDataError: it is not COCO, or an object names a category or a picture that is not there.
    """
    reading = _Reading(path, classes)
    for key, item in _items(path):
        try:
            reading.take(key, item)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            missing = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise TrainingDataError(
                f"An entry of {key} in {path} cannot be understood: {missing}.", _REMEDY
            ) from error
    return reading.finish()


class _Reading:
    def __init__(self, path: Path, classes: ClassSchema) -> None:
        self.path = path
        self.classes = classes
        self.files: dict[str, int] = {}
        self.pictures: dict[str, int] = {}
        self.category_values: dict[str, int | None] = {}
        self.seen: dict[str, int] = {}  # ids of pictures and categories as objects name them
        self.texts: list[str] = []
        self.owners, self.kinds, self.edges = array("q"), array("q"), array("d")
        self.crowds = 0

    def take(self, key: str, item: Any) -> None:
        if key not in ("images", "categories", "annotations"):
            return
        if not isinstance(item, dict):
            raise TypeError(f"{item!r} is no object")
        if key == "images":
            name = Path(str(item["file_name"]).replace("\\", "/")).name
            if name in self.files:
                raise ValueError(f"two pictures are called {name!r}")
            self.files[name] = self.pictures[_key(item["id"])] = len(self.files)
        elif key == "categories":
            self.category_values[_key(item["id"])] = self._value_of(item)
        else:
            if item.get("iscrowd"):
                self.crowds += 1
                return
            edges = _edges(item)
            self.owners.append(self._number(_key(item["image_id"])))
            self.kinds.append(self._number(_key(item["category_id"])))
            self.edges.extend(edges)

    def _value_of(self, category: Any) -> int | None:
        """By the name, which says more than a number; else by the id."""
        for item in self.classes:
            if item.name == str(category.get("name", "")):
                return item.value
        key = _key(category["id"])
        return int(key) if key.isdecimal() and int(key) in self.classes.values else None

    def _number(self, text: str) -> int:
        if text not in self.seen:
            self.seen[text] = len(self.texts)
            self.texts.append(text)
        return self.seen[text]

    def finish(self) -> CocoLabels:
        pictures = [self.pictures.get(text, -1) for text in self.texts]
        values = [self.category_values.get(text) or -1 for text in self.texts]
        owners, kinds = np.array(self.owners, np.int64), np.array(self.kinds, np.int64)
        # Empty lists would be arrays of floats.
        owner = np.array(pictures or [0], np.int64)[owners]
        value = np.array(values or [0], np.int64)[kinds]
        for what, known, numbers in (("picture", owner, owners), ("category", value, kinds)):
            if (known < 0).any():
                text = self.texts[int(numbers[int(np.argmax(known < 0))])]
                raise TrainingDataError(
                    f"An object in {self.path} names the {what} {text}, which the file does not list "
                    "or the classes do not have.",
                    _REMEDY,
                )
        if self.crowds:
            logging.getLogger(__name__).info("%s: %d crowds are left out", self.path, self.crowds)
        order = np.argsort(owner, kind="stable")
        return CocoLabels(
            files=self.files,
            starts=np.searchsorted(owner[order], np.arange(len(self.files) + 1)),
            values=value[order],
            edges=np.array(self.edges, np.float64).reshape(-1, 4)[order],
            crowds=self.crowds,
        )


def _key(value: Any) -> str:
    """An id as text: some files have 7, others "7" for it, and 7.0 occurs too."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise TypeError(f"{value!r} is no id")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _edges(item: Any) -> tuple[float, float, float, float]:
    box = item.get("bbox")
    if box:
        x, y, width, height = (float(number) for number in box)
        edges = x, y, x + width, y + height
    else:
        rings = item["segmentation"]
        if not isinstance(rings, list):
            raise ValueError("an object has neither a box nor an outline of polygons")
        numbers = [float(number) for ring in rings for number in ring]
        xs, ys = numbers[0::2], numbers[1::2]
        edges = min(xs), min(ys), max(xs), max(ys)
    if not all(map(math.isfinite, edges)):
        raise ValueError(f"an object has the box {list(edges)}")
    return edges


def _items(path: Path) -> Iterator[tuple[str, Any]]:
    """The entries of the lists of a JSON object, with the keys of the lists; other values are passed over.

    Raises:
        NotFoundError: no such file.
        TrainingDataError: not a JSON object.
    """
    if not path.is_file():
        raise NotFoundError(f"There is no file {path}.", "Put the labels of all pictures into it.")
    try:
        with path.open(encoding="utf-8-sig") as source:
            yield from _Scanner(source).entries()
    except (ValueError, RecursionError) as error:
        raise TrainingDataError(f"{path} is not COCO: {error}.", _REMEDY) from error


class _Scanner:
    """Walks through a JSON object without holding more of it than one entry of one list."""

    def __init__(self, source: IO[str]) -> None:
        self.source = source
        self.buffer = ""
        self.at = 0
        self.ended = False
        self.decoder = json.JSONDecoder()

    def entries(self) -> Iterator[tuple[str, Any]]:
        self._expect("{")
        if self._accept("}"):
            return
        while True:
            key = self._value()
            if not isinstance(key, str):
                raise ValueError("a key is no text")
            self._expect(":")
            if self._accept("["):
                if not self._accept("]"):
                    while True:
                        yield key, self._value()
                        if not self._accept(","):
                            break
                    self._expect("]")
            else:
                self._value()
            if not self._accept(","):
                break
        self._expect("}")

    def _fill(self) -> None:
        chunk = self.source.read(max(_CHUNK, len(self.buffer) - self.at))
        self.ended = not chunk
        self.buffer, self.at = self.buffer[self.at :] + chunk, 0

    def _next(self) -> str:
        """The next character that is no blank, which stays; nothing at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if self.ended:
                return ""
            self._fill()

    def _accept(self, character: str) -> bool:
        if self._next() != character:
            return False
        self.at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._accept(character):
            raise ValueError(f"{character!r} is missing" + (" at its end" if self.ended else ""))

    def _value(self) -> Any:
        self._next()
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError:
                if self.ended:
                    raise
            else:
                # What follows may still belong to a number: "7", "7." and "7e+" all read as 7.
                if len(self.buffer) - end >= len("e+0") or self.ended:
                    self.at = end
                    return value
            self._fill()
