"""The host: an inference function in its own process, called as ArcGIS would call it.

The interface of the function is described in docs/formats/python-raster-function.md.
"""

from __future__ import annotations

import itertools
import os
import queue
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from tasks.errors import BadInputError, DeviceError, HostError
from tasks.host.answers import AnswerError, Call, Expected, read_answer
from tasks.host.arguments import FunctionParameter, Scalar, read_parameters, scalars_for
from tasks.host.blocks import check_dimensions, mask_for, output_props
from tasks.host.classified import ClassifiedObject, read_classified
from tasks.host.containment import clean_environment
from tasks.host.detections import GEOMETRY_TYPES, Detection, DetectionsError, read_detections
from tasks.host.devices import GpuLock, insisted_gpu
from tasks.host.errors import FunctionFailure, closed_host
from tasks.host.folders import HostFolder
from tasks.host.frames import by_band, dicts, fields, mapping
from tasks.host.interpreters import VARIABLE, framework_of, interpreter_for
from tasks.host.limits import HostLimits
from tasks.host.link import ChildLink, Frame
from tasks.host.permission import permit
from tasks.host.remedies import cause_and_remedy
from tasks.host.ring import Parcel, Ring
from tasks.host.target import RunnablePackage, class_names, default_raster_info, function_path
from tasks.host.wire import PROTOCOL_VERSION, WireError

Operation = Literal["updatePixels", "vectorize", "predict_scores"]
Pixels = npt.NDArray[Any]
Ticket = int


class HostProcess:
    """Runs a package's inference function in a process of its own.

    Use as a context manager; inside it the attributes below are known. ``submit`` and ``result`` may be used
    from several threads; blocks are worked on in the order in which they were submitted.

    Args:
        package: the unpacked package.
        processor_type: "GPU" insists: no GPU is an error, never a silent run on the CPU.
        arguments: model arguments by name, as text; merged over the function's defaults.
        raster_info: what ``updateRasterInfo`` is told of the input raster (keys of ArcGIS's raster info).
        foreign: the package was not made here, so it may run contained only, or with the operator's word
            (``CHIPLINE_ALLOW_UNCONTAINED``).
        interpreter: the Python to run it with; by default the settings' for the package's framework.
        limits: time, memory and ring size; from the settings by default.
        batch: tiles per call of the network at most, for functions that have ``limit_batch``: less than
            their ``batch_size``, with the same blocks. None: as the arguments say.

    Attributes:
        package_digest: SHA-256 of the package's file.
        folder: the only place where the function can write; removed at the end.
        device: the device that is really used, e.g. ``cpu`` or ``cuda:0 NVIDIA H100``.
        parameters: the arguments the function publishes, without rasters, model and device.
        scalars: all arguments as the function got them.
        configuration: what ``getConfiguration`` gave: extractBands, padding, tx, ty, fixedTileSize …
        output_info: what ``updateRasterInfo`` gave: bandCount, pixelType, rasterAttributeTable …; empty
            for functions that have no raster output.
        fields: fields of the vector output by ``getFields``, as JSON objects; empty for raster output.
        geometry_type: 1 point, 2 multipoint, 3 polyline, 4 polygon; None for raster output.
        operations: methods that the function offers.
        offers_scores: whether ``predict_scores`` is offered.
        number_of_scores: scores per pixel that it gives; 0 without.
        software: versions of the frameworks that the function has loaded, as it says.
        engine_identity: all that decides, beside the package, what ``engine_kept`` gives; None without.
        takes_batches: whether the raster argument is ``rasters``: ``vectorize`` takes a batch of arrays,
            one per feature, and answers with one ``ClassifiedObject`` each, in their order.
        key_metadata: what ``updateKeyMetadata`` gave, by output band; -1 is the dataset.
        containment: what is in force, see ``tasks.host.containment.containment_report``.
    """

    def __init__(
        self,
        package: RunnablePackage,
        processor_type: Literal["CPU", "GPU"] = "CPU",
        arguments: Mapping[str, str] | None = None,
        *,
        raster_info: Mapping[str, Any] | None = None,
        foreign: bool = True,
        interpreter: Path | None = None,
        limits: HostLimits | None = None,
        batch: int | None = None,
    ) -> None:
        self._package = package
        self._batch = batch
        self._processor_type = processor_type
        self._arguments = dict(arguments or {})
        self._raster_info = dict(raster_info or default_raster_info(package.definition))
        self._foreign = foreign
        self._interpreter = interpreter or interpreter_for(package.definition, package.digest)
        self._framework = framework_of(package.definition.framework)
        self._limits = limits or HostLimits.from_settings()
        self._function = function_path(package.folder, package.definition)
        self._class_names = class_names(package.definition)

        self._answers: queue.SimpleQueue[Frame | FunctionFailure] = queue.SimpleQueue()
        self._calls: dict[Ticket, Call] = {}
        self._tickets = itertools.count(1)
        self._changed = threading.Condition()
        self._free_slots: list[int] = []
        self._failure: FunctionFailure | None = None
        self._closed = False
        self._writing = 0
        self._link: ChildLink | None = None
        self._ring: Ring | None = None
        self._parcel: Parcel | None = None
        self._gpu_lock: GpuLock | None = None
        self._folder: HostFolder | None = None

        self.package_digest = package.digest
        self.folder: Path | None = None
        self.device = ""
        self.parameters: list[FunctionParameter] = []
        self.scalars: dict[str, Scalar] = {}
        self.configuration: dict[str, Any] = {}
        self.output_info: dict[str, Any] = {}
        self.fields: list[dict[str, Any]] = []
        self.geometry_type: int | None = None
        self.operations: tuple[str, ...] = ()
        self.offers_scores = False
        self.number_of_scores = 0
        self.takes_batches = False
        self.engine_identity: dict[str, Any] | None = None
        self.software: dict[str, str] = {}
        self.key_metadata: dict[int, dict[str, Any]] = {}
        self.containment: dict[str, Any] = {}

    # -- life ---------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        """Starts the process, loads and configures the function.

        Raises:
            BadInputError: an argument that the function does not know or allow.
            DeviceError: a GPU was asked for and is not there, or is taken by another process.
            HostError: the function cannot be started, or may not run uncontained.
        """
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process with everything it started, and removes its folder; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            # A block that is being written holds the ring's descriptors.
            while self._writing:
                self._changed.wait()
        if self._link is not None:
            self._link.close()
            self._link = None
            # Another thread may wait for a block that nobody works on any more.
            self._on_failure(closed_host())
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._parcel is not None:
            self._parcel.close()
            self._parcel = None
        if self._gpu_lock is not None:
            self._gpu_lock.release()
            self._gpu_lock = None
        if self._folder is not None:
            self._folder.remove()
            self._folder = self.folder = None

    def _start(self) -> None:
        gpu = insisted_gpu() if self._processor_type == "GPU" else None
        self._folder = HostFolder()
        self.folder = self._folder.path
        self._ring = Ring(max(2, self._limits.slots))
        self._parcel = Parcel()
        inherit = [descriptor for pair in self._ring.descriptors for descriptor in pair]
        inherit.append(self._parcel.descriptor)
        if gpu is not None:
            self._gpu_lock = GpuLock(gpu)
            inherit.append(self._gpu_lock.acquire(self._limits.start_timeout_s))
        environment = clean_environment(os.environ, str(self.folder))
        environment["CUDA_VISIBLE_DEVICES"] = gpu.uuid if gpu is not None else ""
        self._link = ChildLink(
            interpreter=self._interpreter,
            environment=environment,
            folder=self.folder,
            inherit=inherit,
            name=self._function.name,
            memory_mb=self._limits.memory_mb,
            on_frame=self._on_frame,
            on_failure=self._on_failure,
        )
        try:
            pid = self._link.start()
        except OSError as error:
            raise HostError(
                f"The interpreter {self._interpreter} cannot be started: {error}.",
                "Give the path of a Python that has numpy and the package's framework.",
            ) from error
        if self._gpu_lock is not None:
            self._gpu_lock.note_holder(pid)
        self._link.expect_within(self._limits.start_timeout_s, "to start")
        self._load(self._link)
        self._link.expect_within(None, "")
        self._free_slots = list(range(len(self._ring.descriptors)))

    def _load(self, link: ChildLink) -> None:
        device = -1 if self._processor_type == "CPU" else 0
        link.send(
            {
                "op": "start",
                "version": PROTOCOL_VERSION,
                "function": str(self._function),
                "model": str(self._package.emd_path),
                "device": device,
                "processor_type": self._processor_type,
                "slots": self._ring.descriptors if self._ring is not None else [],
                "parcel": self._parcel.descriptor if self._parcel is not None else -1,
                "frameworks": list(self._framework.modules) if self._framework is not None else [],
                "containment": self._containment_asked(),
            }
        )
        self.containment = mapping(self._first_answer().get("report"))
        permit(self._package.folder, self.containment, foreign=self._foreign)
        link.send({"op": "load"})
        loaded = self._answer("loaded")
        self.takes_batches = loaded.get("several_rasters") is True
        self.parameters = read_parameters(dicts(loaded.get("parameters")))
        self.scalars = scalars_for(self.parameters, self._arguments)
        asked = {"scalars": self.scalars, "raster_info": self._raster_info, "batch": self._batch}
        link.send({"op": "configure", **asked})
        self._take_configuration(self._answer("ready"))

    def _containment_asked(self) -> dict[str, Any]:
        return {
            "parent": os.getpid(),
            "folder": str(self.folder),
            # A built-in function lies outside the package, beside the others of its kind.
            "read": list(dict.fromkeys((str(self._package.folder.resolve()), str(self._function.parent)))),
            "gpu": self._processor_type == "GPU",
        }

    def _take_configuration(self, ready: Frame) -> None:
        self.configuration = mapping(ready.get("configuration"))
        self.output_info = mapping(ready.get("output_info"))
        operations = ready.get("operations")
        self.operations = tuple(map(str, operations)) if isinstance(operations, list) else ()
        if "engine_kept" in self.operations and ready.get("engine_identity") is not None:
            self.engine_identity = mapping(ready.get("engine_identity"))
        self.software = {str(k)[:40]: str(v)[:40] for k, v in mapping(ready.get("software")).items()}
        self.fields = fields(ready.get("fields"))
        self.key_metadata = by_band(ready.get("key_metadata"))
        geometry = ready.get("geometry_type")
        self.geometry_type = geometry if isinstance(geometry, int) else None
        self.device = self._device_words(mapping(ready.get("device")))
        scores = self.configuration.get("number_of_scores", 0)
        self.offers_scores = "predict_scores" in self.operations and bool(
            self.configuration.get("predict_scores", scores)
        )
        self.number_of_scores = int(scores) if self.offers_scores and isinstance(scores, int) else 0

    def _device_words(self, device: Mapping[str, Any]) -> str:
        if self._processor_type == "CPU":
            return "cpu"
        if not device.get("gpus") or device.get("asked") != "GPU":
            seen = "its framework sees none" if not device.get("gpus") else "the function chose the CPU"
            raise DeviceError(
                f"A GPU was asked for, and {self._function.name} would not run on one: {seen}.",
                "Install the framework's GPU build in the interpreter that runs the package, or set "
                "processor_type to CPU.",
            )
        return f"cuda:0 {device.get('name') or ''}".strip()

    def _first_answer(self) -> Frame:
        try:
            return self._answer("contained")
        except FunctionFailure as failure:
            if failure.cause != "crash":
                raise
            raise HostError(
                f"The interpreter {self._interpreter} does not run the host. {failure.problem}",
                f"Use Python 3.9 or later with numpy; {VARIABLE} says which runs what.",
            ) from failure

    def _answer(self, event: str) -> Frame:
        answer = self._answers.get()
        if isinstance(answer, FunctionFailure):
            raise answer
        if answer.get("event") == "failed":
            raise self._exception(answer, "")
        if answer.get("event") != event:
            raise FunctionFailure(
                f"The function {self._function.name} answered {answer.get('event')!r:.40}, not {event!r}.",
                "The function must not touch the host's file descriptors; correct the package.",
                cause="protocol",
            )
        return answer

    # -- blocks -------------------------------------------------------------------------------------------

    def settle_engine(
        self, blocks: Sequence[Pixels], decided: Frame | None = None, kept: bytes = b""
    ) -> Frame:
        """Has the function decide which execution engine computes; before the first block.

        Args:
            blocks: pixels as ``updatePixels`` takes them, of one tile or of several, to compare engines on.
            decided: what another process of the same run decided, to be followed.
            kept: what :meth:`engine_kept` gave in an earlier process of the same package and
                ``engine_identity``.

        Returns:
            What the function says: ``execution_engine``, ``precision``, ``agreement``, ``fell_back`` …; empty
            for functions that have no choice.

        Raises:
            FunctionFailure: the engine that was decided on cannot be had here.
        """
        if "settle_engine" not in self.operations:
            return {}
        link, ring, slot = self._take_slot()
        assert self._parcel is not None  # there is one as long as there is a ring
        try:
            frame = {"op": "settle", "slot": slot, "blocks": ring.write(slot, list(blocks))}
            self._parcel.write(kept)
        finally:
            with self._changed:
                self._writing -= 1
                self._free_slots.append(slot)
                self._changed.notify_all()
        link.expect_within(self._limits.start_timeout_s, "to settle its execution engine")
        link.send({**frame, "decided": decided, "kept": len(kept)})
        report = mapping(self._answer("settled").get("report"))
        link.expect_within(None, "")
        self._parcel.clear()
        return report

    def engine_kept(self) -> bytes:
        """What makes the settled engine quicker to make in another process; empty where nothing does.

        It is the function's own, and for nobody but the same package: nothing here reads it.
        """
        if self.engine_identity is None or self._link is None or self._parcel is None:
            return b""
        self._link.expect_within(self._limits.start_timeout_s, "to hand over its execution engine")
        self._link.send({"op": "keep"})
        size = self._answer("kept").get("bytes")
        self._link.expect_within(None, "")
        kept = None
        if isinstance(size, int) and 0 <= size <= self._limits.result_mb * 1024 * 1024:
            kept = self._parcel.read(size)
        self._parcel.clear()
        if kept is None:
            raise self._contract(f"engine_kept() of {size!r:.40} bytes", "none, at the start")
        return kept

    def submit(
        self,
        operation: Operation,
        pixels: Pixels,
        mask: npt.NDArray[np.uint8] | None = None,
        *,
        tlc: tuple[float, float] = (0.0, 0.0),
        shape: tuple[int, int] | None = None,
        props: Mapping[str, Any] | None = None,
    ) -> Ticket:
        """Hands one block over; waits while the ring is full.

        Args:
            operation: the method to call.
            pixels: (bands, rows, cols) with the padding, source dtype; for ``predict_scores``, and for
                functions that take batches, (n, bands, rows, cols).
            mask: uint8, 1 valid and 0 invalid, of the pixels' shape, or (rows, cols) for all bands alike, or
                (n, rows, cols) for a batch; everything is valid without it.
            tlc: (x, y) of the block's top-left, for the function and for messages.
            shape: (rows, cols) of the inner block, without padding; that of the pixels by default.
            props: ``extent``, ``pixelType``, ``spatialReference``, ``cellSize``, ``width``, ``height``,
                ``noData``.

        Raises:
            BadInputError: arrays of the wrong shape, or an operation that the function does not offer.
            HostError: the function has ended.
        """
        if operation not in self.operations or (operation == "predict_scores" and not self.offers_scores):
            raise BadInputError(
                f"The function {self._function.name} does not offer {operation}.",
                f"It offers {', '.join(self.operations) or 'nothing'}.",
            )
        arrays = [pixels] if operation == "predict_scores" else [pixels, mask_for(pixels, mask)]
        check_dimensions(operation, pixels, batches=self.takes_batches)
        inner = shape if shape is not None else (pixels.shape[-2], pixels.shape[-1])
        block = f"tlc {tuple(tlc)}, shape {tuple(inner)}, pixels {pixels.shape} {pixels.dtype}"
        link, ring, slot = self._take_slot()
        try:
            described = ring.write(slot, arrays)
        finally:
            with self._changed:
                self._writing -= 1
                self._changed.notify_all()
        frame = {
            "op": "call",
            "operation": operation,
            "slot": slot,
            "pixels": described[0],
            "mask": described[-1],
            "tlc": list(tlc),
            "shape": list(inner),
            "props": output_props(self.output_info, props, inner),
        }
        expected = Expected(
            operation, pixels.shape, inner, self.number_of_scores, self._limits.result_mb * 1024 * 1024
        )
        with self._changed:
            ticket = next(self._tickets)
            if not any(not call.done.is_set() for call in self._calls.values()):
                link.expect_within(self._limits.block_timeout_s, f"in {operation}, on the block at {block}")
            self._calls[ticket] = Call(slot, expected, block)
            try:
                # Within the lock, so that frames leave in the order of the tickets.
                link.send({**frame, "ticket": ticket})
            except (TypeError, WireError) as error:
                del self._calls[ticket]
                self._free_slots.append(slot)
                raise BadInputError(
                    f"The block's props cannot be handed over: {error}.", "Give numbers, text and tuples."
                ) from error
            failure = self._failure
        if failure is not None:
            self._fail_calls(failure)
        return ticket

    def result(self, ticket: Ticket) -> Any:
        """Waits for a block; each ticket can be asked once.

        Returns:
            ``updatePixels``: ndarray (bands, rows, cols) of the inner block, 0 where the function's own
            output mask is 0. ``vectorize``: list of ``Detection``, of a function that takes batches one
            ``ClassifiedObject`` per entry, in their order. ``predict_scores``: float32 (n, classes, rows,
            cols).

        Raises:
            FunctionFailure: the function raised (its traceback and the block are in the message), crashed,
                hung, took too much memory, or gave an answer of the wrong kind or shape.
        """
        with self._changed:
            call = self._calls.get(ticket)
        if call is None:
            raise BadInputError(f"There is no block with the ticket {ticket}.", "Ask for each result once.")
        call.done.wait()
        with self._changed:
            self._calls.pop(ticket, None)
        if call.error is not None:
            raise call.error
        return self._vectors(call.value, call) if isinstance(call.value, bytes) else call.value

    def run(
        self,
        operation: Operation,
        pixels: Pixels,
        mask: npt.NDArray[np.uint8] | None = None,
        *,
        tlc: tuple[float, float] = (0.0, 0.0),
        shape: tuple[int, int] | None = None,
        props: Mapping[str, Any] | None = None,
    ) -> Any:
        """``submit`` and ``result`` in one."""
        return self.result(self.submit(operation, pixels, mask, tlc=tlc, shape=shape, props=props))

    def output_tail(self) -> str:
        """The last that the function printed."""
        return self._link.tail() if self._link is not None else ""

    def _take_slot(self) -> tuple[ChildLink, Ring, int]:
        with self._changed:
            while not self._free_slots and self._failure is None and not self._closed:
                self._changed.wait()
            if self._failure is not None:
                raise self._failure
            if self._closed or self._link is None or self._ring is None:
                raise closed_host()
            self._writing += 1
            return self._link, self._ring, self._free_slots.pop()

    # -- called in the link's thread ----------------------------------------------------------------------

    def _on_frame(self, frame: Frame) -> None:
        ticket = frame.get("ticket")
        if ticket is None:
            self._answers.put(frame)
            return
        with self._changed:
            call = self._calls.get(ticket) if isinstance(ticket, int) else None
        if call is None or call.done.is_set() or self._ring is None:
            return
        if frame.get("event") == "failed":
            call.error = self._exception(frame, call.block)
        else:
            try:
                call.value = read_answer(frame, call.expected, self._ring, call.slot)
            except AnswerError as error:
                call.error = self._contract(str(error), call.block)
        with self._changed:
            call.done.set()
            self._free_slots.append(call.slot)
            waiting = [other for other in self._calls.values() if not other.done.is_set()]
            if self._link is not None:
                if waiting:
                    doing = f"in {waiting[0].expected.operation}, on the block at {waiting[0].block}"
                    self._link.expect_within(self._limits.block_timeout_s, doing)
                else:
                    self._link.expect_within(None, "")
            self._changed.notify_all()

    def _on_failure(self, failure: FunctionFailure) -> None:
        with self._changed:
            working = next((call for call in self._calls.values() if not call.done.is_set()), None)
            if working is not None:
                failure = FunctionFailure(
                    f"{failure.problem}\nThe block: {working.block}.",
                    failure.remedy,
                    cause=failure.cause,
                    block=working.block,
                    function_traceback=failure.function_traceback,
                )
            self._failure = failure
        self._answers.put(failure)
        self._fail_calls(failure)

    def _fail_calls(self, failure: FunctionFailure) -> None:
        with self._changed:
            for call in self._calls.values():
                if not call.done.is_set():
                    call.error = failure
                    call.done.set()
            self._changed.notify_all()

    # -- answers into errors and detections ---------------------------------------------------------------

    def _exception(self, frame: Frame, block: str) -> FunctionFailure:
        kind, message = str(frame.get("type")), str(frame.get("message"))
        stage, trace = str(frame.get("stage")), str(frame.get("traceback"))
        cause, remedy = cause_and_remedy(frame, self._interpreter, self._framework)
        where = f" on the block at {block}" if block else f" ({stage})"
        tail = self.output_tail()
        said = f"\nIts last output:\n{tail}" if tail else ""
        return FunctionFailure(
            f"The inference function {self._function.name} failed{where}: {kind}: {message}\n{trace}{said}\n",
            remedy,
            cause=cause,
            block=block,
            function_traceback=trace,
        )

    def _contract(self, what: str, block: str) -> FunctionFailure:
        return FunctionFailure(
            f"The inference function {self._function.name} gave an answer that cannot be used: {what}. "
            f"The block: {block}.",
            "Correct the function; docs/formats/python-raster-function.md says what it must return.",
            cause="contract",
            block=block,
        )

    def _vectors(self, text: bytes, call: Call) -> list[Detection] | list[ClassifiedObject]:
        announced = {str(entry.get("name", "")).lower() for entry in self.fields}
        unsure = bool(announced) and "confidence" not in announced
        names = self._class_names
        try:
            if self.takes_batches:
                count = call.expected.pixels_shape[0]
                return read_classified(text, count=count, class_names=names, without_confidence=unsure)
            kind = GEOMETRY_TYPES.get(self.geometry_type or 4)
            return read_detections(text, class_names=names, without_confidence=unsure, kind=kind)
        except DetectionsError as error:
            raise self._contract(str(error), call.block) from error
