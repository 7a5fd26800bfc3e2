"""Names in a training data folder: chips, world files, lines of map.txt.

Format: docs/formats/training-data.md, "Files common to every format".
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from tasks.errors import TrainingDataError
from tasks.labels.schema import ClassSchema

CLASSIFIED_TILES = "Classified_Tiles"
PASCAL_VOC = "PASCAL_VOC_rectangles"

IMAGES = "images"
LABELS = "labels"
MAP = "map.txt"
STATS = "stats.txt"
ACCUMULATED_STATS = "esri_accumulated_stats.json"
DEFINITION = "esri_model_definition.emd"

IMAGES2 = "images2"
LABELS2 = "labels2"
# Class names in paths may hold any letter.
MAP_ENCODING = "utf-8"

IMAGE_EXTENSIONS = {"TIFF": ".tif", "PNG": ".png", "JPEG": ".jpg", "MRF": ".mrf"}
# First and last letter of the extension, and a w.
WORLD_EXTENSIONS = {".tif": ".tfw", ".png": ".pgw", ".jpg": ".jgw", ".mrf": ".mfw"}
# What GDAL appends to a file's name for that of its mask.
MASK_ENDING = ".msk"
LABEL_EXTENSIONS = {CLASSIFIED_TILES: ".tif", PASCAL_VOC: ".xml"}
# What a reader takes for a chip; all else in images/ (world files, .msk, .aux.xml, .ovr) is a side file.
READABLE_IMAGES = frozenset({".tif", ".tiff", ".png", ".jpg", ".jpeg", ".mrf"})

Transform = tuple[float, float, float, float, float, float]


def chip_stem(number: int) -> str:
    """``000000042``: nine digits, more if the number needs them."""
    return f"{number:09d}"


def map_line(image: str, *labels: str) -> str:
    """One line of map.txt, without its line end.

    The byte layout of ArcGIS: backslashes, two spaces between columns, one trailing space.
    """
    return "  ".join(path.replace("/", "\\") for path in (image, *labels)) + " "


def parse_map_line(line: str) -> tuple[str, ...]:
    """The paths of a line of map.txt, with forward slashes; none for an empty line."""
    return tuple(part.replace("\\", "/") for part in line.split())


def world_file(transform: Sequence[float]) -> bytes:
    """A world file for the transform (a, b, c, d, e, f): six lines, last the upper-left pixel's centre."""
    a, b, c, d, e, f = transform[:6]
    values = (a, d, b, e, c + 0.5 * (a + b), f + 0.5 * (d + e))
    return "".join(f"{value:.10f}\n" for value in values).encode("ascii")


def parse_world_file(text: str) -> Transform:
    """The transform (a, b, c, d, e, f) of a world file, about the upper-left pixel's outer corner.

    Raises:
        ValueError: not six numbers.
    """
    numbers = [float(item) for item in text.split()]
    if len(numbers) != 6:
        raise ValueError(f"a world file has 6 numbers, not {len(numbers)}")
    a, d, b, e, x, y = numbers
    return a, b, x - 0.5 * (a + b), d, e, y - 0.5 * (d + e)


# What Windows, where these folders are used, forbids in a name; blanks, because map.txt is split at them.
_FORBIDDEN = re.compile(r'[\x00-\x20\x7f<>:"/\\|?*]+|\s+')
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


def folder_name(class_name: str) -> str:
    """A class name as the name of a folder, everywhere: no blanks, none of ``<>:"/\\|?*``, no device name.

    Letters of every language stay, in their composed form (NFC); what is not allowed becomes one underscore.
    A name that is a folder name already stays as it is.
    """
    name = _FORBIDDEN.sub("_", unicodedata.normalize("NFC", class_name.strip())).rstrip(".")
    return f"_{name}" if not name or _RESERVED.fullmatch(name) else name


def folder_classes(classes: ClassSchema) -> ClassSchema:
    """The classes under names that are different folder names, also where case does not count.

    Where two classes would share a folder, both get their value appended.

    Raises:
        TrainingDataError: they share one even so.
    """
    names = {item.value: folder_name(item.name) for item in classes}
    shared = _shared(names)
    names = {value: f"{name}_{value}" if value in shared else name for value, name in names.items()}
    if shared := _shared(names):
        raise TrainingDataError(
            f"The classes {sorted(classes.names[classes.index(value)] for value in shared)} would share the "
            "folder of their labels.",
            "Give them names that differ in letters or digits.",
        )
    if tuple(names.values()) == classes.names:
        return classes
    return ClassSchema(tuple(replace(item, name=names[item.value]) for item in classes))


def _shared(names: Mapping[int, str]) -> set[int]:
    counts = Counter(name.casefold() for name in names.values())
    return {value for value, name in names.items() if counts[name.casefold()] > 1}
