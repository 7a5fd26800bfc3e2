"""The classes of a set of labels: value, name, colour."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tasks.errors import LabelError

Color = tuple[int, int, int]

# Well separated colours for the first classes; further ones walk the hue circle by the golden angle.
_PALETTE: tuple[Color, ...] = (
    (230, 57, 70),
    (42, 157, 143),
    (244, 162, 97),
    (69, 123, 157),
    (231, 196, 106),
    (131, 56, 236),
    (106, 153, 78),
    (255, 112, 166),
    (0, 180, 216),
    (140, 90, 60),
)
_GOLDEN_ANGLE = 0.381966


def palette_color(index: int) -> Color:
    """The colour of the ``index``-th class of a schema that gives no colours; always the same one."""
    if index < len(_PALETTE):
        return _PALETTE[index]
    red, green, blue = colorsys.hsv_to_rgb((index * _GOLDEN_ANGLE) % 1.0, 0.65, 0.85)
    return round(red * 255), round(green * 255), round(blue * 255)


@dataclass(frozen=True)
class LabelClass:
    """One class.

    Attributes:
        value: what label pixels and boxes carry.
        name: for people.
        color: red, green, blue (0 to 255).
        parent: value of the class it is a kind of, where a class schema file says so.
    """

    value: int
    name: str
    color: Color
    parent: int | None = None


@dataclass(frozen=True)
class ClassSchema:
    """The classes of a set of labels, ordered by value. Value 0 means "no label" and is never a class."""

    classes: tuple[LabelClass, ...]

    @classmethod
    def from_values(cls, names: Mapping[int, str], colors: Mapping[int, Color] | None = None) -> ClassSchema:
        """A schema from class names by value; a class without a colour gets the palette's.

        Raises:
            LabelError: a value below 1, or two classes with one name.
        """
        colors = colors or {}
        ordered = sorted(names)
        if ordered and ordered[0] < 1:
            raise LabelError(
                f"The class value {ordered[0]} is not positive.",
                "Number the classes from 1; the value 0 means 'no label'.",
            )
        seen: dict[str, int] = {}
        for value in ordered:
            if names[value] in seen:
                raise LabelError(
                    f"The class name {names[value]!r} belongs to the values "
                    f"{seen[names[value]]} and {value}.",
                    "Give every class value a name of its own.",
                )
            seen[names[value]] = value
        return cls(
            tuple(
                LabelClass(value, names[value], colors.get(value, palette_color(index)))
                for index, value in enumerate(ordered)
            )
        )

    @property
    def values(self) -> tuple[int, ...]:
        """The class values, ascending."""
        return tuple(item.value for item in self.classes)

    @property
    def names(self) -> tuple[str, ...]:
        """The class names, in the order of the values."""
        return tuple(item.name for item in self.classes)

    def __len__(self) -> int:
        return len(self.classes)

    def __iter__(self) -> Iterator[LabelClass]:
        return iter(self.classes)

    def index(self, value: int) -> int:
        """The position of a class value.

        Raises:
            LabelError: no such class.
        """
        try:
            return self.values.index(value)
        except ValueError:
            raise LabelError(
                f"The class value {value} is not among the classes {list(self.values)}.",
                "Name every class value in the class schema.",
            ) from None

    def value_of(self, text: str) -> int | None:
        """The class that a label names, by value written as text or by class name; None if there is none."""
        text = text.strip()
        for item in self.classes:
            if text == str(item.value):
                return item.value
        for item in self.classes:
            if text == item.name:
                return item.value
        try:
            value = int(float(text))
        except ValueError:
            return None
        return value if value in self.values else None

    def to_records(self) -> list[dict[str, Any]]:
        """As ``[{"Value", "Name", "Color"}]``, the form of an ``.emd`` (docs/formats/training-data.md)."""
        return [{"Value": item.value, "Name": item.name, "Color": list(item.color)} for item in self.classes]

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> ClassSchema:
        """From ``Classes`` of an ``.emd``; takes Value/Name/Color and the older ClassValue/ClassName.

        A colour of -1, or none, means "no colour" and gets the palette's. The value 0 (background) is
        left out.
        """
        names: dict[int, str] = {}
        colors: dict[int, Color] = {}
        for record in records:
            value = int(record["Value"] if "Value" in record else record["ClassValue"])
            if value == 0:
                continue
            name = record.get("Name", record.get("ClassName"))
            names[value] = str(value if name is None else name)
            color = record.get("Color")
            if color and len(color) >= 3 and min(color[:3]) >= 0:
                colors[value] = (int(color[0]), int(color[1]), int(color[2]))
        return cls.from_values(names, colors)
