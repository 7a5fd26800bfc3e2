"""Names, lines of map.txt and world files, byte for byte."""

from __future__ import annotations

import pytest
from affine import Affine

from tasks.training_data import layout


def test_stems_have_nine_digits() -> None:
    assert layout.chip_stem(0) == "000000000"
    assert layout.chip_stem(1234567890) == "1234567890"


def test_a_map_line_has_backslashes_two_spaces_and_a_trailing_space() -> None:
    assert (
        layout.map_line("images/000000000.jpg", "labels/000000000.xml")
        == "images\\000000000.jpg  labels\\000000000.xml "
    )


@pytest.mark.parametrize("line", ["images\\0.tif  labels\\0.xml \r\n", "images/0.tif labels/0.xml\n"])
def test_map_lines_are_read_whatever_wrote_them(line: str) -> None:
    assert layout.parse_map_line(line) == ("images/0.tif", "labels/0.xml")


def test_a_world_file_as_an_export_of_arcgis_writes_it() -> None:
    size, x, y = 0.0859005782, -19519397.5074988008, -2402928.3408006001
    text = layout.world_file((size, 0, x - size / 2, 0, -size, y + size / 2))
    lines = text.decode().splitlines()
    assert lines[:4] == ["0.0859005782", "0.0000000000", "0.0000000000", "-0.0859005782"]
    assert [float(line) for line in lines[4:]] == pytest.approx([x, y], abs=1e-8)
    assert all(len(line.split(".")[1]) == 10 for line in lines)


def test_world_files_round_trip() -> None:
    transform = tuple(Affine(0.5, 0.1, 1000.25, -0.2, -0.5, 2000.75))[:6]
    assert layout.parse_world_file(layout.world_file(transform).decode()) == pytest.approx(transform)


def test_a_world_file_of_five_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="6 numbers"):
        layout.parse_world_file("1\n0\n0\n-1\n5\n")
