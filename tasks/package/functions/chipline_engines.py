"""Execution engines of a packaged network: torch, ONNX Runtime or OpenVINO, in float32 or bfloat16.

This file travels inside packages beside ``chipline_runtime.py``. Torch alone is needed; the other engines are
looked up when one is asked for, and are made from the torch network in this process. What an engine gives is
compared with what torch gives in float32 before its first result is used (``Execution.settle``): one that
disagrees, or is not there, gives way to the next slower one, and ``Execution.report`` says so. Pixels are
compared by their classes, objects by their boxes (``ChiplineObjectDetector``); how is stated in
``chipline_agreement.py``. Making an engine takes seconds: what was made can be kept (``Execution.kept``) and
given to the next process of the same package on the same machine.
"""

from __future__ import annotations

import copy
import importlib.metadata
import io
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import chipline_agreement
import numpy as np
import torch

ENGINES = ("TORCH", "COMPILED", "ONNXRUNTIME", "OPENVINO")
PRECISIONS = ("FLOAT32", "BFLOAT16")
REFERENCE = ("TORCH", "FLOAT32")

# Compiled models are made for one shape each; a host sends one or two.
_MOST_SHAPES = 4

Outputs = tuple[torch.Tensor, ...]
Run = Callable[[torch.Tensor], Outputs]
"""Normalised images (n, bands, rows, cols) -> what the network gives, float32, on the same device."""


class EngineError(Exception):
    """An execution engine cannot run this network here."""


class _Made:
    """An engine that runs a network.

    Args:
        run: what it computes.
        kept: gives what would make it quicker to make again; None: nothing would.
        from_kept: whether it was made of such.
    """

    def __init__(
        self, run: Run, kept: Callable[[], list[bytes]] | None = None, *, from_kept: bool = False
    ) -> None:
        self.run, self.kept, self.from_kept = run, kept, from_kept


class Execution:
    """Runs a network by the engine that was asked for, once that is known to agree with torch in float32.

    Args:
        module: the network in float32 on its device, in evaluation mode; gives a tensor or a tuple of them.
        shape: of the input that it will mostly see: (n, bands, rows, cols).
        engine: one of ``ENGINES``.
        precision: one of ``PRECISIONS``.
        judge: what is compared, and how; classes of pixels by default.

    Attributes:
        report: ``execution_engine`` and ``precision`` that really compute, ``asked`` (both), ``fell_back``:
            why faster ones were left, in words, empty where the wish was granted; ``refused``: what was
            measured of those that disagree; ``kept``: whether what an earlier process kept was used;
            ``kept_useless``: what failed where it was tried in vain, else None. Of the engine that computes
            ``agreement`` (mean IoU with torch in float32 on the sample, None where nothing was compared),
            ``at_least`` (what that makes sure of, with ``certainty``), number of ``tiles`` and of ``pixels``
            (or of what else the judge compares) and, for classes, ``by_class``.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        shape: tuple[int, int, int, int],
        engine: str = "TORCH",
        precision: str = "FLOAT32",
        judge: Any = None,
    ) -> None:
        if engine not in ENGINES or precision not in PRECISIONS:
            raise ValueError(
                f"execution_engine {engine}, precision {precision}: use one of {', '.join(ENGINES)} and "
                f"one of {', '.join(PRECISIONS)}"
            )
        self._module, self._shape, self._asked = module, shape, (engine, precision)
        self._judge: Any = judge or chipline_agreement.Classes()
        self._made: _Made | None = None
        self._given: bytes | None = None
        self._useless: str | None = None
        self.report: dict[str, Any] = {}
        if self._asked == REFERENCE:
            self._use(REFERENCE, _make(module, shape, REFERENCE), None, [], [])

    def identity(self) -> dict[str, Any]:
        """All that decides, beside the package, what is kept and how engines compare."""
        device = next(self._module.parameters()).device
        return {
            "asked": list(self._asked),
            "shape": list(self._shape),
            "gate": chipline_agreement.GATE_VERSION,
            "threads": torch.get_num_threads(),
            "versions": {name: _version(name) for name in ("torch", "openvino", "onnxruntime", "numpy")},
            "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        }

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The first of :meth:`outputs`: of pixel classification logits (n, scores, rows, cols)."""
        return self.outputs(images)[0]

    def outputs(self, images: torch.Tensor) -> Outputs:
        """Normalised images (n, bands, rows, cols) -> what the network gives, float32, same device.

        It is to be used up before the next call. A host that never calls ``settle`` has the engine compared
        on the first images it sends.
        """
        if self._made is None:
            self.settle([images])
        assert self._made is not None
        return self._made.run(images)

    def kept(self) -> bytes:
        """What makes the engine quicker to make in another process; empty where nothing does.

        It is known once the engine is settled. Only :meth:`settle` reads it, of the same package on the same
        kind of machine (:meth:`identity`).
        """
        if self._made is None or self._made.kept is None:
            return b""
        choice = [self.report["execution_engine"], self.report["precision"]]
        parts = self._made.kept()
        head = json.dumps({"engine": choice, "sizes": [len(part) for part in parts]})
        return b"".join([head.encode(), b"\n", *parts]) if parts else b""

    def settle(
        self,
        batches: Sequence[torch.Tensor],
        decided: dict[str, Any] | None = None,
        kept: bytes | None = None,
    ) -> dict[str, Any]:
        """Decides which engine computes; the report.

        Args:
            batches: normalised images (n, bands, rows, cols) to compare on, in an order in which the first
                ones are a fair sample of all. No more of them are looked at than a clear verdict takes.
            decided: the report of another process of the same run, which is followed without comparing.
            kept: what :meth:`kept` gave in an earlier process.

        Raises:
            EngineError: what was decided elsewhere cannot be had here.
        """
        self._given = kept
        try:
            return self._follow(decided) if decided is not None else self._decide(batches)
        finally:
            self._given = None  # as large as the network

    def _follow(self, decided: dict[str, Any]) -> dict[str, Any]:
        chosen = (str(decided["execution_engine"]), str(decided["precision"]))
        self._made = made = self._make(chosen)
        if made.kept is not None and chosen[0] == "COMPILED" and not made.from_kept:
            # What is compiled can be kept once it has run.
            with torch.inference_mode():
                made.run(torch.zeros(self._shape, device=next(self._module.parameters()).device))
        self.report = {**decided, "kept": made.from_kept, "kept_useless": self._useless}
        return self.report

    def _decide(self, batches: Sequence[torch.Tensor]) -> dict[str, Any]:
        reasons: list[str] = []
        refused: list[dict[str, Any]] = []
        if not len(batches) and self._asked != REFERENCE:
            reasons.append("there was no imagery to compare engines on")
        reference = _Answers(self._judge, _make(self._module, self._shape, REFERENCE).run, batches)
        for choice in _ladder(self._asked):
            if choice == REFERENCE or not len(batches):
                break
            words = " in ".join(choice)
            # Not guarded: where torch in float32 fails, for want of memory say, nothing else is better.
            reference.of(0)
            try:
                made = _guarded(lambda choice=choice: self._make(choice))  # type: ignore[misc]
                judged = self._compared(made.run, reference, batches)
            except _FailedError as failure:
                reasons.append(f"{words} does not run this network here: {failure}")
                continue
            if judged.passes:
                self._use(choice, made, judged, reasons, refused)
                return self.report
            refused.append(
                {
                    "execution_engine": choice[0],
                    "precision": choice[1],
                    **judged.report(self._judge.unit),
                }
            )
            reasons.append(f"{words} agrees with {' in '.join(REFERENCE)} to {judged.words()}")
        self._use(REFERENCE, _make(self._module, self._shape, REFERENCE), None, reasons, refused)
        return self.report

    def _compared(self, run: Run, reference: _Answers, batches: Sequence[torch.Tensor]) -> Any:
        """What the judge says of an engine, on as many tiles as a clear verdict takes."""
        entries: list[Any] = []
        look = chipline_agreement.FIRST_LOOK
        for number in range(len(batches)):
            wanted, images = reference.of(number), batches[number]
            with torch.inference_mode():
                found = _guarded(lambda images=images: self._judge.answers(run, images))  # type: ignore[misc]
            entries += self._judge.compare(wanted, found)
            if len(entries) >= look:
                judged = self._judge.judged(entries)
                if judged.clear:
                    return judged
                look *= 2
        return self._judge.judged(entries)

    def _make(self, choice: tuple[str, str]) -> _Made:
        parts = _parts_of(self._given, choice)
        if parts is not None:
            try:
                made: _Made = _guarded(lambda: _make(self._module, self._shape, choice, parts))
                return made
            except _FailedError as failure:  # a shortcut: below is the whole way
                self._given, self._useless = None, str(failure)
        return _make(self._module, self._shape, choice)

    def _use(
        self,
        choice: tuple[str, str],
        made: _Made,
        judged: Any,
        reasons: list[str],
        refused: list[dict[str, Any]],
    ) -> None:
        self._made = made
        measured = {"agreement": None, self._judge.unit: 0}
        if judged is not None:
            measured = judged.report(self._judge.unit)
        self.report = {
            "execution_engine": choice[0],
            "precision": choice[1],
            "asked": list(self._asked),
            **measured,
            "fell_back": reasons,
            "refused": refused,
            "kept": made.from_kept,
            "kept_useless": self._useless,
        }


class _FailedError(Exception):
    """An engine failed; the text says how."""


def _guarded(work: Callable[[], Any]) -> Any:
    """What ``work`` gives. Engines raise what they like; the run goes on without them, and says so."""
    try:
        return work()
    except Exception as error:
        text = str(error).strip().splitlines() or [""]
        raise _FailedError(f"{type(error).__name__}: {text[0][:300]}") from error


class _Answers:
    """What torch in float32 answers, computed when it is first asked for."""

    def __init__(self, judge: Any, run: Run, batches: Sequence[torch.Tensor]) -> None:
        self._judge, self._run, self._batches = judge, run, batches
        self._found: list[Any] = []

    def of(self, number: int) -> Any:
        while len(self._found) <= number:
            with torch.inference_mode():
                self._found.append(self._judge.answers(self._run, self._batches[len(self._found)]))
        return self._found[number]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """What a processor can do, in the kernel's words."""
    told = ("model name", "cpu part", "flags", "features")
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as stream:  # noqa: PTH123
            lines = {line.strip() for line in stream if line.lower().startswith(told)}
    except OSError:
        lines = set()
    return "\n".join([torch.backends.cpu.get_cpu_capability(), *sorted(lines)])


def _parts_of(kept: bytes | None, choice: tuple[str, str]) -> list[bytes] | None:
    """The parts of what was kept of this engine; None where there is nothing of it."""
    head, found, rest = (kept or b"").partition(b"\n")
    if not found:
        return None
    try:
        described = json.loads(head)
        engine, sizes = tuple(described["engine"]), [int(size) for size in described["sizes"]]
    except (ValueError, KeyError, TypeError):
        return None
    if engine != choice or sum(sizes) != len(rest) or min(sizes, default=-1) < 0:
        return None
    parts, start = [], 0
    for size in sizes:
        parts.append(rest[start : start + size])
        start += size
    return parts


def _ladder(asked: tuple[str, str]) -> list[tuple[str, str]]:
    """What is tried, in order: what was asked, the same engine in float32, torch in float32."""
    return list(dict.fromkeys([asked, (asked[0], "FLOAT32"), REFERENCE]))


def _make(
    module: torch.nn.Module,
    shape: tuple[int, int, int, int],
    choice: tuple[str, str],
    kept: list[bytes] | None = None,
) -> _Made:
    engine, precision = choice
    if engine in ("TORCH", "COMPILED"):
        return _torch(module, shape, precision, compiled=engine == "COMPILED", kept=kept)
    if next(module.parameters()).device.type != "cpu":
        raise EngineError(f"{engine} is used on a CPU; on a GPU torch computes")
    make = _openvino if engine == "OPENVINO" else _onnxruntime
    return make(module, shape, precision, kept)


def _traced(module: torch.nn.Module, example: torch.Tensor) -> Any:
    # Tracing outside of inference mode, and of a copy: the weights' layout is torch's alone.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every number that it takes for a constant
        plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        trace: Any = torch.jit.trace
        return trace(plain, example, check_trace=False)


def _tensors(given: Any) -> Outputs:
    return (given,) if isinstance(given, torch.Tensor) else tuple(given)


def _torch(
    module: torch.nn.Module,
    shape: tuple[int, int, int, int],
    precision: str,
    *,
    compiled: bool,
    kept: list[bytes] | None,
) -> _Made:
    narrow = precision == "BFLOAT16"
    network: Any = _narrowed(module, shape) if narrow else module
    if compiled:
        if kept is not None and torch.compiler.load_cache_artifacts(kept[0]) is None:
            raise EngineError("torch cannot read the kept kernels")
        # Shapes are few and fixed: a kernel each, as for the other engines.
        network = torch.compile(network, dynamic=False)

    def run(images: torch.Tensor) -> Outputs:
        given = images.to(torch.bfloat16) if narrow else images
        return tuple(one.float() for one in _tensors(network(given)))

    def compiler_cache() -> list[bytes]:
        saved = torch.compiler.save_cache_artifacts()
        return [] if saved is None else [saved[0]]

    return _Made(run, compiler_cache if compiled else None, from_kept=kept is not None)


def _narrowed(module: torch.nn.Module, shape: tuple[int, int, int, int]) -> torch.nn.Module:
    """A copy in bfloat16, whose last layers stay in float32.

    bfloat16 tells numbers from 64 to 128 apart by halves: scores that were rounded to it would be equal where
    the classes' true ones are not, and the first of them would win.
    """
    with torch.inference_mode(False), torch.no_grad():
        # A copy: the float32 network is what this one is compared with.
        narrow = copy.deepcopy(module).to(torch.bfloat16)
        for name in last_layers(module, shape):
            layer = narrow.get_submodule(name).float()
            layer.load_state_dict(module.get_submodule(name).state_dict())
            layer.register_forward_pre_hook(_in_float32)
    return narrow


def _in_float32(layer: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:  # noqa: ARG001
    return tuple(one.float() for one in given)


def last_layers(module: torch.nn.Module, shape: tuple[int, int, int, int]) -> list[str]:
    """Names of the layers with weights whose outcome meets no further layer with weights.

    Found by walking back from the outputs through what torch notes for derivatives, on the device ``meta``,
    where nothing is computed.

    Args:
        shape: of an input that the network takes: (n, bands, rows, cols).
    """
    with torch.inference_mode(False), torch.enable_grad():
        probe = copy.deepcopy(module).to("meta").requires_grad_(True)
        outputs = _tensors(probe(torch.zeros(1, *shape[1:], device="meta")))
    last: set[int] = set()
    earlier: set[int] = set()
    # Nodes are kept: Python makes their wrappers anew, under the numbers of those that are gone.
    seen: dict[tuple[int, bool], Any] = {}
    ahead: list[tuple[Any, bool]] = [(one.grad_fn, False) for one in outputs if one.grad_fn is not None]
    while ahead:
        node, behind = ahead.pop()
        if (id(node), behind) in seen:
            continue
        seen[id(node), behind] = node
        before = [one for one, _ in node.next_functions if one is not None]
        weights = {id(one.variable) for one in before if hasattr(one, "variable")}
        (earlier if behind else last).update(weights)
        ahead += [(one, behind or bool(weights)) for one in before if not hasattr(one, "variable")]
    # A feature map may be an output, too, and still go on into further layers.
    owned = last - earlier
    return [
        name
        for name, layer in probe.named_modules()
        if name
        and not list(layer.children())
        and any(id(weight) in owned for weight in layer.parameters(recurse=False))
    ]


def _openvino(
    module: torch.nn.Module, shape: tuple[int, int, int, int], precision: str, kept: list[bytes] | None
) -> _Made:
    try:
        import openvino  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise EngineError("the Python that runs the package has no openvino") from error
    core = openvino.Core()
    settings = {
        # Stated in float32, too: by itself OpenVINO takes bfloat16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "BFLOAT16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_HYPER_THREADING": True,
    }
    if kept is not None:
        model = core.read_model(kept[0], openvino.Tensor(np.frombuffer(kept[1], np.uint8)))
    else:
        # One image of the real size: what a network computes from its input's size is traced as it will be.
        example = torch.zeros(1, *shape[1:])
        free = openvino.PartialShape([-1, shape[1], -1, -1])
        traced = _traced(module, example)
        model = openvino.convert_model(traced, example_input=example, input=[free])
    requests: dict[tuple[int, ...], Any] = {}

    def run(images: torch.Tensor) -> Outputs:
        shape = tuple(images.shape)
        if shape not in requests:
            if len(requests) >= _MOST_SHAPES:
                requests.clear()
            model.reshape(list(shape))
            requests[shape] = core.compile_model(model, "CPU", settings).create_infer_request()
        given = images.contiguous().numpy()
        # Shared, not copied.
        found = requests[shape].infer([given], share_inputs=True, share_outputs=True)
        return tuple(torch.from_numpy(found[number]) for number in range(len(model.outputs)))

    def converted() -> list[bytes]:
        with tempfile.TemporaryDirectory() as folder:
            paths = [os.path.join(folder, name) for name in ("model.xml", "model.bin")]  # noqa: PTH118
            model.reshape([-1, shape[1], -1, -1])
            openvino.serialize(model, *paths)
            return [_content(path) for path in paths]

    return _Made(run, converted, from_kept=kept is not None)


def _content(path: str) -> bytes:
    with open(path, "rb") as stream:  # noqa: PTH123
        return stream.read()


def _onnxruntime(
    module: torch.nn.Module, shape: tuple[int, int, int, int], precision: str, kept: list[bytes] | None
) -> _Made:
    if precision != "FLOAT32":
        raise EngineError("ONNX Runtime computes in float32 on a CPU")
    try:
        import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise EngineError("the Python that runs the package has no onnxruntime") from error
    exported = kept[0] if kept is not None else _exported(module, torch.zeros(1, *shape[1:]))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the reader's and the writer's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(exported, options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> Outputs:
        found = session.run(None, {"images": images.contiguous().numpy()})
        return tuple(torch.from_numpy(one) for one in found)

    return _Made(run, lambda: [exported], from_kept=kept is not None)


def _exported(module: torch.nn.Module, example: torch.Tensor) -> bytes:
    """The network as ONNX."""
    traced = _traced(module, example)
    stream: Any = io.BytesIO()
    free = {0: "n", 2: "rows", 3: "cols"}
    outputs = {f"output{number}": one.ndim for number, one in enumerate(_tensors(traced(example)))}
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            traced,
            (example,),
            stream,
            dynamo=False,
            opset_version=17,
            input_names=["images"],
            output_names=list(outputs),
            dynamic_axes={
                "images": free,
                **{name: free if axes == 4 else {0: "n"} for name, axes in outputs.items()},
            },
        )
    exported: bytes = stream.getvalue()
    return exported
