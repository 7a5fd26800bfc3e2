"""Several processes cut one part: the same bytes, errors as ever, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import geopandas
import psutil
import pytest
import shapely

from tasks.errors import ChiplineError, RunError
from tasks.export import crew as crews
from tasks.export import cut, cutter, inputs, plan
from tasks.export.crew import Crew
from tasks.export.parameters import ExportParameters
from tasks.settings import settings
from tasks.store import ObjectStore
from tests.unit.export.conftest import CRS
from tests.unit.export.oracle import differences

MakeScene = Callable[..., Any]
Export = Callable[..., Any]

_LONG_S = 60.0


@pytest.fixture
def crew() -> Iterator[Crew]:
    with Crew(3) as made:
        yield made


def _wait_until_ready(crew: Crew) -> None:
    for helper in crew._helpers:
        assert helper.connection.poll(_LONG_S)


def test_bytes_do_not_depend_on_the_number_of_processes(
    make_scene: MakeScene, export: Export, crew: Crew, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    scene = make_scene(rows=220)
    area = tmp_path / "area.gpkg"
    frame = geopandas.GeoDataFrame(geometry=[shapely.box(*scene.frame.total_bounds).buffer(50)], crs=CRS)
    frame.to_file(area, engine="pyogrio")
    options: dict[str, dict[str, Any]] = {
        "tiles": {"metadata_format": "Classified_Tiles", "chips_per_part": 15},
        "boxes": {"tile_size": 48, "stride_size": 48},
        "turned": {"metadata_format": "RCNN_Masks", "rotation_angle": 90},
        "features": {"metadata_format": "Labeled_Tiles", "input_mask_polygons": str(area)},
    }
    alone = {name: export(scene, output_location=name, **chosen).files() for name, chosen in options.items()}
    _wait_until_ready(crew)
    done: list[int] = []
    work_done = crews._Work.done

    def counted(self: Any, index: int, result: Any) -> None:
        done.append(len(result.chips))
        work_done(self, index, result)

    monkeypatch.setattr(crews._Work, "done", counted)
    cut_slice = cutter.Cutter.cut

    def leisurely(self: cutter.Cutter, *arguments: Any) -> Any:
        time.sleep(0.1)  # the helpers get their slices
        return cut_slice(self, *arguments)

    monkeypatch.setattr(cutter.Cutter, "cut", leisurely)
    for name, chosen in options.items():
        told: list[tuple[int, int]] = []
        together = export(
            scene,
            output_location=f"{name}-together",
            crew=crew,
            progress=lambda *numbers, told=told: told.append(numbers),
            **chosen,
        )
        assert differences(together.files(), alone[name]) == []
        assert told[-1][0] == told[-1][1] == together.plan.parts[-1].chips
        assert done, "the helpers have cut nothing"
        done.clear()


def _wait_for_failure(patch: pytest.MonkeyPatch) -> None:
    """This process cuts nothing and waits until a helper has failed."""
    failed = threading.Event()
    fail = crews._Work.fail

    def told(self: Any, error: BaseException) -> None:
        fail(self, error)
        failed.set()

    def patient(*_: Any) -> cutter.SliceResult:
        assert failed.wait(_LONG_S)
        return cutter.SliceResult([], [])

    patch.setattr(cutter.Cutter, "cut", patient)
    patch.setattr(crews._Work, "fail", told)


def _planned(scene: Any, store: ObjectStore) -> plan.ExportPlan:
    parameters = ExportParameters(
        input_raster=[scene.raster],
        input_class_data=scene.labels,
        output_location="chips",
        tile_size=64,
        stride_size=40,
    )
    made = plan.plan_in_force(store, parameters, inputs.inspect_inputs(parameters))
    plan.save_plan(store, made)
    return made


def test_what_goes_wrong_in_a_helper_is_raised_here_and_the_crew_goes_on(
    make_scene: MakeScene, export: Export, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene()
    whole = export(scene, output_location="whole").files()
    store = ObjectStore()
    made = _planned(scene, store)
    raster, hidden = Path(scene.raster), Path(scene.raster).with_suffix(".hidden")
    lanes = cutter.Cutter.lanes

    def hide(self: cutter.Cutter) -> Any:
        raster.rename(hidden)  # this process has opened it
        return lanes(self)

    with monkeypatch.context() as patch:
        patch.setattr(cutter.Cutter, "lanes", hide)
        _wait_for_failure(patch)
        with pytest.raises(ChiplineError, match=raster.name) as raised:
            cut.cut_part(store, made, 0, crew=crew)
    assert "helper.py" in raised.value.__notes__[0]
    assert cut.read_result(store, made.folder_uri, 0) is None
    hidden.rename(raster)
    assert differences(export(scene, crew=crew).files(), whole) == []


def test_a_helper_that_dies_ends_the_part(
    make_scene: MakeScene, crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make_scene()
    store = ObjectStore()
    made = _planned(scene, store)
    _wait_until_ready(crew)
    server = crew._server
    assert server is not None
    processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children()]
    assert len(processes) == 2
    server.kill()
    server.wait()
    _wait_for_failure(monkeypatch)
    with pytest.raises(RunError, match="CHIPLINE_EXPORT_PROCESSES"):
        cut.cut_part(store, made, 0, crew=crew)
    assert cut.read_result(store, made.folder_uri, 0) is None
    # The others went with it.
    assert psutil.wait_procs(processes[1:], timeout=10)[1] == []


@pytest.mark.slow
def test_helpers_die_with_their_parent() -> None:
    code = (
        "import time; from tasks.export.crew import Crew\n"
        "with Crew(3) as crew:\n"
        "    [helper.connection.poll(60) for helper in crew._helpers]\n"
        "    print(crew._server.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    server = psutil.Process(int(parent.stdout.readline()))
    processes = [server, *server.children()]
    assert len(processes) == 2
    os.kill(parent.pid, signal.SIGKILL)
    parent.communicate()
    assert psutil.wait_procs(processes, timeout=10)[1] == []


def test_closing_ends_helpers_that_are_still_starting() -> None:
    begin = time.monotonic()
    with Crew(2) as crew:
        server = crew._server
    assert server is not None
    assert server.poll() is not None
    assert time.monotonic() - begin < crews._END_S


@pytest.mark.parametrize(("text", "cores"), [("max 100000", 4), ("150000 100000", 2), ("900000 100000", 4)])
def test_a_container_s_share_of_the_machine_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str, cores: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    (tmp_path / "cpu.max").write_text(text + "\n")
    monkeypatch.setattr(crews, "_CPU_SHARE", tmp_path / "cpu.max")
    assert crews.usable_cores() == cores
    monkeypatch.setenv("CHIPLINE_EXPORT_PROCESSES", "7")
    settings.cache_clear()
    assert (Crew().processes, Crew(3).processes) == (7, 3)
