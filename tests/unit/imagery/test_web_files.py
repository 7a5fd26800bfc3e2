"""Rasters on a web server: read by ranges, known by their ETag, refused where something is missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tasks.errors import ChiplineError, RasterError
from tasks.imagery import GridReader, Window, grid_of_collection, inspect_raster
from tests.unit.imagery.conftest import Writer

pytestmark = pytest.mark.timeout(60)


@dataclass
class WebServer:
    """A folder's files on a web server."""

    folder: Path
    port: int

    def put(self, name: str, content: bytes, etag: str = "") -> str:
        """A file, and its address."""
        (self.folder / name).write_bytes(content)
        if etag:
            (self.folder / f"{name}.etag").write_text(f'"{etag}"')
        return f"http://127.0.0.1:{self.port}/{name}"

    @property
    def given(self) -> int:
        """Bytes of all answers."""
        return sum(int(line.split()[0]) for line in (self.folder / "log").read_text().splitlines())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    folder = tmp_path_factory.mktemp("web")
    command = [sys.executable, str(Path(__file__).with_name("web_server.py")), str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield WebServer(folder, int(process.stdout.readline()))
        process.terminate()


def read_whole(uri: str) -> NDArray[np.generic]:
    info = inspect_raster(uri)
    with GridReader([info], grid_of_collection([info])) as reader:
        return reader.read(reader.grid.window).values


def test_a_window_of_a_web_file_is_read_by_ranges(server: WebServer, write: Writer) -> None:
    values = np.random.default_rng(2).integers(0, 256, (3, 900, 800), dtype=np.uint8)
    path = Path(write("a.tif", values, blockxsize=128, blockysize=128))
    uri = server.put("scene.tif", path.read_bytes(), "one")
    info = inspect_raster(uri)
    assert info.model_copy(update={"uri": "", "identity": ""}) == inspect_raster(str(path)).model_copy(
        update={"uri": "", "identity": ""}
    )
    grid, window = grid_of_collection([info]), Window(300, 290, 90, 70)
    before = server.given
    with GridReader([info], grid) as reader:
        np.testing.assert_array_equal(reader.read(window).values, values[:, *window.slices_in(grid.window)])
    assert server.given - before < path.stat().st_size / 2
    np.testing.assert_array_equal(read_whole(uri), values)
    server.put("scene.tif", path.read_bytes(), "two")
    assert inspect_raster(uri).identity != info.identity
    # A signature is no part of what a raster is.
    assert inspect_raster(f"{uri}?X-Amz-Signature=abc").identity == inspect_raster(uri).identity


def test_what_is_missing_cut_off_or_unknown_is_refused(server: WebServer, write: Writer) -> None:
    whole = Path(write("a.tif", np.ones((1, 300, 300), np.uint8))).read_bytes()
    with pytest.raises(ChiplineError, match=r"none\.tif"):
        inspect_raster(server.put("none.tif", b"").replace("none", "no/none"))
    with pytest.raises(RasterError, match="neither an ETag"):
        inspect_raster(server.put("plain.tif", whole))
    with pytest.raises(RasterError, match="cannot be opened"):
        inspect_raster(server.put("a.vrt", b"<VRTDataset/>", "v"))
    with pytest.raises(RasterError, match=r"cut\.tif.*(could not be read|cannot be opened)"):
        read_whole(server.put("cut.tif", whole[: len(whole) // 2], "c"))
