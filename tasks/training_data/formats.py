"""Every metadata format by its name; a module is imported when its format is asked for.

A module has one instance of its subclass of :class:`Format`, called ``FORMAT``.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping

from tasks.errors import BadInputError
from tasks.training_data.sample import Format, Holding

# In the order in which messages and documents list them.
_HOME = {
    "Classified_Tiles": "classified_tiles",
    "Labeled_Tiles": "labeled_tiles",
    "MultiLabeled_Tiles": "multilabeled_tiles",
    "PASCAL_VOC_rectangles": "pascal_voc",
    "KITTI_rectangles": "kitti",
    "RCNN_Masks": "rcnn_masks",
    "Export_Tiles": "export_tiles",
    "CycleGAN": "cyclegan",
    "Imagenet": "imagenet",
    "Panoptic_Segmentation": "panoptic",
    "COCO_rectangles": "coco",
    "YOLO_rectangles": "yolo",
}


class _Formats(Mapping[str, Format]):
    def __init__(self) -> None:
        self._loaded: dict[str, Format] = {}

    def __getitem__(self, name: str) -> Format:
        if name not in self._loaded:
            module = f"tasks.training_data.{_HOME[name]}"
            if importlib.util.find_spec(module) is None:
                raise KeyError(name)
            found: Format = importlib.import_module(module).FORMAT
            if found.name != name:
                raise RuntimeError(f"{module} holds the format {found.name}, not {name}")
            self._loaded[name] = found
        return self._loaded[name]

    def __iter__(self) -> Iterator[str]:
        return (name for name, home in _HOME.items() if importlib.util.find_spec(f"{__package__}.{home}"))

    def __len__(self) -> int:
        return sum(1 for _ in self)


FORMATS: Mapping[str, Format] = _Formats()


def format_of(name: str) -> Format:
    """The format of that name.

    Raises:
        BadInputError: there is none.
    """
    try:
        return FORMATS[name]
    except KeyError:
        raise BadInputError(
            f"There is no metadata format {name or '(nothing)'}.", f"Use one of: {', '.join(FORMATS)}."
        ) from None


def formats_holding(what: Holding) -> tuple[str, ...]:
    """The names of the formats whose labels can be read so."""
    return tuple(name for name, item in FORMATS.items() if what in item.holds)
