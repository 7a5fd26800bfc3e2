"""The child: one process that runs one inference function and nothing of ours.

Started by path with the interpreter that the function's framework needs; it imports the standard library,
numpy and its siblings by path: ``wire.py``, ``child_memory.py``, ``arcpy_standin.py``, and ``containment.py``
with the kernel's means, which has to confine the process before any foreign code is read. The call order and
the shapes are those of docs/formats/python-raster-function.md. What the function prints goes to the log pipe
on stdout.
"""

from __future__ import annotations

import builtins
import faulthandler
import functools
import importlib.util
import inspect
import json
import os
import select
import signal
import socket
import sys
import traceback
import types
from collections import deque
from collections.abc import Callable
from typing import Any

_OPERATIONS = ("updatePixels", "vectorize", "predict_scores")
_OTHER_METHODS = (
    "selectRasters", "updateKeyMetadata", "settle_engine", "engine_identity", "engine_kept", "limit_batch",
)  # fmt: skip
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
# The interface that is kept is that of this ArcGIS; functions compare the numbers (isLicensed).
# What may have computed, for the record.
_FRAMEWORKS = ("torch", "torchvision", "tensorflow", "keras", "onnxruntime", "openvino", "numpy")
_PRODUCT = {"productName": "Chipline", "version": "11.5", "path": "", "major": 11, "minor": 5.0,
    "build": 57000, "spNumber": 0, "spBuild": 0}  # fmt: skip
_PINNED_VARIABLE = "CUDA_VISIBLE_DEVICES"

_HERE = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - pathlib costs 10 ms of start


def _sibling(name: str) -> types.ModuleType:
    """A file beside this one as a module, without making our packages importable for the function."""
    path = os.path.join(_HERE, name + ".py")  # noqa: PTH118
    spec = importlib.util.spec_from_file_location("_chipline_" + name, path)
    if spec is None or spec.loader is None:
        raise ImportError(path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


memory = _sibling("child_memory")


class ContractError(Exception):
    """The function does not keep to the interface of a Python raster function."""


# -- loading -----------------------------------------------------------------------------------------------


def load_class(path: str, arcpy: types.ModuleType) -> type:
    """The function's class: named as the file, else the only class that defines ``getParameterInfo``."""
    folder = os.path.dirname(path)  # noqa: PTH120
    stem = os.path.splitext(os.path.basename(path))[0]  # noqa: PTH119, PTH122
    sys.path.insert(0, folder)
    # Templates use arcpy without importing it: the module's own namespace and every sibling must have it.
    sys.modules["arcpy"] = arcpy
    builtins.__dict__["arcpy"] = arcpy
    spec = importlib.util.spec_from_file_location(stem, path)
    if spec is None or spec.loader is None:
        raise ContractError(f"{os.path.basename(path)} is no Python file")  # noqa: PTH119
    module = importlib.util.module_from_spec(spec)
    sys.modules[stem] = module
    module.__dict__["arcpy"] = arcpy
    spec.loader.exec_module(module)
    return choose_class(module, stem)


def choose_class(module: types.ModuleType, stem: str) -> type:
    """The class to make: named as the file, else the one that is a whole function.

    A file may also hold helpers that publish arguments for it (``ChildImageClassifier``, whose
    ``getParameterInfo`` takes the list to extend), base classes, or import the class from a sibling.
    """
    named = getattr(module, stem, None)
    if inspect.isclass(named):
        return named
    publishing = {
        id(value): value
        for value in vars(module).values()
        if inspect.isclass(value) and callable(getattr(value, "getParameterInfo", None))
    }.values()
    own = [kind for kind in publishing if kind.__module__ == stem]
    for group in ([kind for kind in own if _is_whole(kind)], own, list(filter(_is_whole, publishing))):
        leaves = [kind for kind in group if not any(kind in other.__mro__[1:] for other in group)]
        if len(leaves) == 1:
            return leaves[0]
        if leaves:
            break
    found = ", ".join(kind.__name__ for kind in publishing) or "none"
    raise ContractError(
        f"{stem}.py defines no class {stem}, and not exactly one class with getParameterInfo (found: {found})"
    )


def _is_whole(kind: Any) -> bool:
    if not any(callable(getattr(kind, name, None)) for name in _OPERATIONS):
        return False
    try:
        parameters = list(inspect.signature(kind.getParameterInfo).parameters.values())
    except (TypeError, ValueError):
        return False
    needed = [item for item in parameters if item.default is item.empty and item.kind in _POSITIONAL]
    return len(needed) <= 1


def plain(value: Any, depth: int = 0) -> Any:
    """``value`` as JSON can carry it: tuples and arrays become lists, numpy scalars numbers."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if depth > 12:
        return repr(value)
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item, depth + 1) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist(), depth + 1)
    return repr(value)


def tuples(value: Any) -> Any:
    """The reverse, as functions expect it: lists of plain values become tuples."""
    if isinstance(value, dict):
        return {key: tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        return tuple(tuples(item) for item in value)
    return value


class Runner:
    """The function's life: load, configure, call."""

    def __init__(self, start: dict[str, Any], arcpy: types.ModuleType) -> None:
        self.frameworks: list[str] = list(start.get("frameworks", []))
        self._start = start
        self._arcpy = arcpy
        self._slots = [memory.Slot(*pair) for pair in start["slots"]]
        self._function: Any = None
        self._scalars: dict[str, Any] = {}
        self._raster = "raster"
        self._several = False
        self._output_bands = 1
        self._configuration: dict[str, Any] = {}

    def load(self, _frame: dict[str, Any]) -> dict[str, Any]:
        """``__init__``, ``isLicensed``, ``initialize``, ``getParameterInfo``, in the order ArcGIS keeps."""
        kind = load_class(self._start["function"], self._arcpy)
        self._function = kind()
        licensed = getattr(self._function, "isLicensed", None)
        refusal = _refusal(licensed) if licensed is not None else None
        if refusal is not None:
            raise ContractError(f"isLicensed() says that the function may not run{refusal}")
        self._function.initialize(model=self._start["model"], device=self._start["device"])
        parameters = self._function.getParameterInfo()
        if not isinstance(parameters, (list, tuple)):
            raise ContractError(f"getParameterInfo() gave {type(parameters).__name__}, not a list")
        # A template carries a bare string in its list: skipped, as ArcGIS does.
        described = [plain(entry) for entry in parameters if isinstance(entry, dict) and "name" in entry]
        for entry in described:
            kind_of_data = str(entry.get("dataType", "")).lower()
            if kind_of_data in ("raster", "rasters"):
                self._raster, self._several = str(entry["name"]), kind_of_data == "rasters"
                break
        return {
            "event": "loaded",
            "several_rasters": self._several,
            "parameters": described,
            "name": str(getattr(self._function, "name", kind.__name__)),
            "class": kind.__name__,
            "description": str(getattr(self._function, "description", "")),
        }

    def configure(self, frame: dict[str, Any]) -> dict[str, Any]:
        """``getConfiguration``, ``updateRasterInfo``, ``getFields`` and ``getGeometryType``."""
        self._scalars = dict(frame["scalars"])
        self._scalars["model"] = self._start["model"]
        self._scalars["device"] = self._start["device"]
        configure = getattr(self._function, "getConfiguration", None)
        given = configure(**self._scalars) if configure is not None else {}
        if given is None:
            given = {}
        if not isinstance(given, dict):
            raise ContractError(f"getConfiguration() gave {type(given).__name__}, not a dict")
        self._configuration = given
        limit = getattr(self._function, "limit_batch", None)
        if frame.get("batch") is not None and callable(limit):
            limit(int(frame["batch"]))
        fields = getattr(self._function, "getFields", None)
        geometry = getattr(self._function, "getGeometryType", None)
        answer = {
            "event": "ready",
            "configuration": plain(given),
            "fields": plain(fields()) if fields is not None else None,
            "geometry_type": plain(geometry()) if geometry is not None else None,
            "operations": [
                name for name in _OPERATIONS + _OTHER_METHODS if callable(getattr(self._function, name, None))
            ],
            "device": self.device(insisted=self._start["processor_type"] == "GPU"),
            "software": {
                name: str(getattr(sys.modules[name], "__version__", ""))
                for name in _FRAMEWORKS
                if name in sys.modules
            },
        }
        answer["output_info"] = self._output_info(frame["raster_info"])
        answer["key_metadata"] = self._key_metadata()
        identity = getattr(self._function, "engine_identity", None)
        answer["engine_identity"] = plain(identity()) if callable(identity) else None
        return answer

    def _output_info(self, raster_info: dict[str, Any]) -> Any:
        update = getattr(self._function, "updateRasterInfo", None)
        if update is None:
            return None
        info = tuples(raster_info)
        named: dict[str, Any] = {"output_info": dict(info)}
        for name in dict.fromkeys((self._raster, self._delivered_name())):
            named[f"{name}_info"] = (info,) if self._several and name == self._raster else info
        answer = update(**self._scalars, **named)
        if not isinstance(answer, dict) or not isinstance(answer.get("output_info"), dict):
            raise ContractError("updateRasterInfo() gave no dict with output_info")
        given = plain(answer["output_info"])
        bands = given.get("bandCount")
        self._output_bands = bands if isinstance(bands, int) else 1
        return given

    def _delivered_name(self) -> str:
        """The name of the arrays: that of the raster argument, or the one all rasters share when composed."""
        return "compositeraster" if self._configuration.get("compositeRasters") else self._raster

    def _key_metadata(self) -> list[list[Any]]:
        """``updateKeyMetadata`` for the dataset (-1) and each output band; templates give None: no change."""
        update = getattr(self._function, "updateKeyMetadata", None)
        if update is None:
            return []
        result = []
        for band in range(-1, min(self._output_bands, 64)):
            answer = update((), band)
            if answer is not None and not isinstance(answer, dict):
                raise ContractError(f"updateKeyMetadata() gave {type(answer).__name__}, not a dict")
            result.append([band, plain(answer or {})])
        return result

    def settle(self, frame: dict[str, Any]) -> dict[str, Any]:
        """``settle_engine``, which functions with a choice of execution engines have."""
        slot = self._slots[frame["slot"]]
        blocks = [slot.array(described) for described in frame["blocks"]]
        size = frame["kept"]
        kept = {"kept": memory.content(self._start["parcel"], size)} if size else {}
        report = self._function.settle_engine(blocks, frame["decided"], **kept)
        if not isinstance(report, dict):
            raise ContractError(f"settle_engine() gave {type(report).__name__}, not a dict")
        return {"event": "settled", "report": plain(report)}

    def keep(self, _frame: dict[str, Any]) -> dict[str, Any]:
        """``engine_kept``, whose answer makes the engine quicker to make in another process."""
        kept = self._function.engine_kept()
        if not isinstance(kept, bytes):
            raise ContractError(f"engine_kept() gave {type(kept).__name__}, not bytes")
        return {"event": "kept", "bytes": memory.write(self._start["parcel"], memoryview(kept))}

    def call(self, frame: dict[str, Any]) -> dict[str, Any]:
        """One block through ``updatePixels``, ``vectorize`` or ``predict_scores``."""
        import numpy

        slot = self._slots[frame["slot"]]
        pixels = slot.array(frame["pixels"])
        operation = frame["operation"]
        if operation == "predict_scores":
            return self._array(slot, numpy.asarray(self._function.predict_scores(pixels)))
        tlc, shape, props, blocks = self._given(frame, pixels, slot.array(frame["mask"]))
        if operation == "vectorize":
            # vectorize(**pixelBlocks) gets the pixels only, unless it names the block's place too.
            place = {"tlc": tlc, "shape": shape, "props": props}
            named = inspect.signature(self._function.vectorize).parameters
            blocks.update((name, value) for name, value in place.items() if name in named)
            return self._vectors(slot, self._function.vectorize(**blocks))
        return self._pixels(slot, self._function.updatePixels(tlc, shape, props, **blocks))

    def overlaps(self, frame: dict[str, Any]) -> bool:
        """Whether a block may begin before the one before it has ended.

        A function that computes on a device of its own offers ``begin_pixels`` and ``end_pixels``, the halves
        of ``updatePixels``, and ``overlaps`` that is true: while the device computes one block the next one
        is made ready.
        """
        return (
            frame["op"] == "call"
            and frame["operation"] == "updatePixels"
            and callable(getattr(self._function, "begin_pixels", None))
            and bool(getattr(self._function, "overlaps", False))
        )

    def begin(self, frame: dict[str, Any]) -> Callable[[], dict[str, Any]]:
        """Begins a block; what is returned waits for its answer. Its mask is not to be written to."""
        import numpy

        slot = self._slots[frame["slot"]]
        pixels, mask = slot.array(frame["pixels"]), slot.array(frame["mask"])
        # One plane for all bands stays one: the next block's time is the device's.
        given = self._given(frame, pixels, numpy.broadcast_to(mask, pixels.shape))
        begun = self._function.begin_pixels(*given[:3], **given[3])
        return lambda: self._pixels(slot, self._function.end_pixels(begun))

    def _given(self, frame: dict[str, Any], pixels: Any, mask: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
        """What ``updatePixels`` takes: tlc, shape, props, and the arrays by name."""
        import numpy

        if mask.shape != pixels.shape:
            # One plane for all bands; a batch of features has one plane each.
            mask = mask[:, None] if mask.ndim == 3 and pixels.ndim == 4 else mask
            mask = numpy.broadcast_to(mask, pixels.shape).copy()
        tlc, props = tuple(frame["tlc"]), tuples(frame["props"])
        # Several output bands make the shape three-dimensional, as ArcGIS does.
        shape = ((self._output_bands,) if self._output_bands > 1 else ()) + tuple(frame["shape"])
        return tlc, shape, props, self._blocks(pixels, mask, tlc, shape, props)

    def _pixels(self, slot: Any, answer: Any) -> dict[str, Any]:
        """The answer of ``updatePixels``, put into the output memory."""
        import numpy

        if not isinstance(answer, dict) or "output_pixels" not in answer:
            raise ContractError("updatePixels() gave no dict with output_pixels")
        output = numpy.asarray(answer["output_pixels"])
        output_mask = answer.get("output_mask")
        if output_mask is not None:
            # 0 is NoData in every class raster (docs/formats/python-raster-function.md).
            valid = numpy.asarray(output_mask) != 0
            if valid.shape[-2:] != output.shape[-2:]:
                raise ContractError(f"output_mask has the shape {valid.shape}, output_pixels {output.shape}")
            output = numpy.where(valid, output, numpy.zeros((), output.dtype))
        return self._array(slot, output)

    def _blocks(self, pixels: Any, mask: Any, tlc: Any, shape: Any, props: Any) -> dict[str, Any]:
        """The arrays by name; a tuple of them for ``rasters``; none where ``selectRasters`` wants none."""
        select = getattr(self._function, "selectRasters", None)
        selected = select(tlc, shape, props) if callable(select) else None
        if isinstance(selected, str):
            selected = (selected,)
        name = self._delivered_name()
        if selected is not None and not {name, self._raster} & set(selected):
            return {}
        if self._several:
            return {f"{name}_pixels": tuple(pixels), f"{name}_mask": tuple(mask)}
        return {f"{name}_pixels": pixels, f"{name}_mask": mask}

    def _array(self, slot: Any, array: Any) -> dict[str, Any]:
        import numpy

        if array.dtype.kind == "b":
            array = array.astype(numpy.uint8)
        if array.dtype.kind not in "iuf":
            raise ContractError(f"the output array has dtype {array.dtype}, not a number type")
        array = numpy.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))
        size = slot.write(memoryview(array).cast("B")) if array.size else 0
        return {"kind": "array", "shape": list(array.shape), "dtype": array.dtype.str, "bytes": size}

    def _vectors(self, slot: Any, answer: Any) -> dict[str, Any]:
        if not isinstance(answer, dict) or "output_vectors" not in answer:
            raise ContractError("vectorize() gave no dict with output_vectors")
        text = answer["output_vectors"]
        if not isinstance(text, (str, bytes)):
            text = json.dumps(plain(text))
        data = text.encode() if isinstance(text, str) else text
        return {"kind": "json", "bytes": slot.write(memoryview(data))}

    def device(self, insisted: bool = False) -> dict[str, Any]:
        """The device that is really used; asked after ``initialize``, when the framework is there."""
        asked = str(self._arcpy.env.processorType).upper()
        torch = sys.modules.get("torch")
        if torch is None and insisted and importlib.util.find_spec("torch") is not None:
            # A lazy function has not imported its framework yet; a missing GPU must be told now.
            import torch
        if torch is not None and torch.cuda.is_available():
            number = max(0, int(self._start["device"]))
            name = torch.cuda.get_device_name(number) if asked == "GPU" else ""
            return {"asked": asked, "gpus": torch.cuda.device_count(), "name": name}
        tensorflow = sys.modules.get("tensorflow")
        if insisted and tensorflow is not None:
            gpus = tensorflow.config.list_physical_devices("GPU")
            return {"asked": asked, "gpus": len(gpus), "name": gpus[0].name if gpus else ""}
        return {"asked": asked, "gpus": 0, "name": "", "framework": torch is not None}


def _refusal(is_licensed: Any) -> str | None:
    """None where the function may run, else its own words for why not."""
    try:
        inspect.signature(is_licensed).bind(**_PRODUCT)
    except (TypeError, ValueError):
        answer = is_licensed()
    else:
        answer = is_licensed(**_PRODUCT)
    if isinstance(answer, dict):
        message = str(answer.get("message") or "")
        permitted = answer.get("okToRun", True)
    else:
        # A function that says nothing does not say no.
        message, permitted = "", answer is None or answer
    return None if permitted else (f": {message[:500]}" if message else "")


class _PinnedEnvironment(type(os.environ)):  # type: ignore[misc]
    """``os.environ`` in which the device stays the one that was chosen.

    Templates set CUDA_VISIBLE_DEVICES to the number they were given. The child is shown one GPU by its UUID,
    and number 0 of it is another GPU on a machine that has several.
    """

    def __setitem__(self, key: str, value: str) -> None:
        if key != _PINNED_VARIABLE:
            super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        if key != _PINNED_VARIABLE:
            super().__delitem__(key)

    def clear(self) -> None:
        """All but the device; the inherited one would wait for its end forever."""
        for key in list(self):
            del self[key]


# -- the loop ----------------------------------------------------------------------------------------------


def _failure(error: BaseException, frame: dict[str, Any], frameworks: list[str]) -> dict[str, Any]:
    return {
        "event": "failed",
        "ticket": frame.get("ticket"),
        "stage": frame.get("op"),
        "type": type(error).__name__,
        "message": _text_of(error)[:4000],
        "traceback": _own_traceback(error)[-16000:],
        "missing_module": str(error.name or "") if isinstance(error, ImportError) else "",
        "missing_frameworks": [name for name in frameworks if not _is_importable(name)],
        "has_pip": _is_importable("pip"),
    }


def _is_importable(name: str) -> bool:
    try:
        return name in sys.modules or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:  # noqa: BLE001 - the text is foreign code, too
        return f"(its text cannot be had: {type(second).__name__})"


def _own_traceback(error: BaseException) -> str:
    """Where the function was, without our own frames; the cause of the failure comes first, as in Python."""
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(parts) < 6:
        seen.add(id(current))
        steps = traceback.extract_tb(current.__traceback__)
        own = [step for step in steps if step.filename != __file__ and "<frozen" not in step.filename]
        text = "".join(traceback.format_list(own))
        if isinstance(current, SyntaxError):
            # The place is not among the frames: the file was never run.
            text += (
                f'  File "{current.filename}", line {current.lineno}\n    {(current.text or "").strip()}\n'
            )
        if parts:
            text += f"{type(current).__name__}: {_text_of(current)[:1000]}\nwhich led to:\n"
        parts.insert(0, text)
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)
    return "".join(parts)


def serve(connection: socket.socket, wire: types.ModuleType, runner: Runner) -> None:
    """Answers frames one after the other until the host closes."""
    answers = {
        "load": runner.load,
        "configure": runner.configure,
        "settle": runner.settle,
        "keep": runner.keep,
        "call": runner.call,
    }
    begun: deque[tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = deque()

    def answer_to(frame: dict[str, Any]) -> dict[str, Any]:
        return answers[frame["op"]](frame)

    def respond(frame: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
        try:
            answer = work()
            if frame["op"] == "call":
                answer.update(event="result", ticket=frame["ticket"])
        except BaseException as error:  # noqa: BLE001
            # Any failure of foreign code, SystemExit too, goes to the host with its own traceback.
            answer = _failure(error, frame, runner.frameworks)
        try:
            wire.send_frame(connection, answer)
        except (wire.WireError, TypeError, ValueError) as error:
            problem = ContractError(f"the answer cannot travel: {error}")
            wire.send_frame(connection, _failure(problem, frame, []))

    while True:
        # One block computes while the next one begins; with nothing to begin, what computes is waited for.
        while len(begun) > 1 or (begun and not select.select([connection], [], [], 0)[0]):
            respond(*begun.popleft())
        frame = wire.receive_frame(connection)
        if frame is None or frame["op"] == "close":
            return
        if runner.overlaps(frame):
            begun.append((frame, _begun(runner, frame)))
            continue
        while begun:
            respond(*begun.popleft())
        respond(frame, functools.partial(answer_to, frame))


def _begun(runner: Runner, frame: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A block that has begun; a failure to is its answer, in its turn."""
    try:
        return runner.begin(frame)
    except BaseException as error:  # noqa: BLE001 - as for all of the function's failures
        failure = error

    def failed() -> dict[str, Any]:
        raise failure

    return failed


def main(connection_fd: int, trace_fd: int) -> None:
    """Contain, then serve."""
    # The guardians that confine() leaves behind must survive the question where the function is.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    wire = _sibling("wire")
    containment, arcpy_standin = _sibling("containment"), _sibling("arcpy_standin")
    kernel = [_sibling(name) for name in ("landlock", "seccomp", "namespaces")]
    connection = socket.socket(fileno=connection_fd)
    start = wire.receive_frame(connection)
    if start is None:
        return
    if start["version"] != wire.PROTOCOL_VERSION:
        raise SystemExit(f"protocol {start['version']} was asked, this is {wire.PROTOCOL_VERSION}")
    report = containment.confine(start["containment"], connection_fd, *kernel)
    wire.send_frame(connection, {"event": "contained", "version": wire.PROTOCOL_VERSION, "report": report})
    # Where the function was: on a crash, and when the host asks because it takes too long or too much.
    faulthandler.enable(file=trace_fd)
    faulthandler.register(signal.SIGUSR2, file=trace_fd, all_threads=False)
    os.environ.__class__ = _PinnedEnvironment
    arcpy = arcpy_standin.make_arcpy(start["processor_type"], start["device"])
    serve(connection, wire, Runner(start, arcpy))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
    # Frameworks leave threads behind that would hold the process at exit; everything is answered by now.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
