"""Execution engines of a packaged network: torch, ONNX Runtime or OpenVINO, in float32 or bfloat16.

This file travels inside packages beside ``chipline_runtime.py``. Torch alone is needed; the other engines are
looked up when one is asked for, and are made from the torch network in this process. What an engine gives is
compared with what torch gives in float32 before its first result is used (``Execution.settle``): one that
disagrees, or is not there, gives way to the next slower one, and ``Execution.report`` says so. Pixels are
compared by their classes, objects by their boxes (``ChiplineObjectDetector``).
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

ENGINES = ("TORCH", "COMPILED", "ONNXRUNTIME", "OPENVINO")
PRECISIONS = ("FLOAT32", "BFLOAT16")
REFERENCE = ("TORCH", "FLOAT32")

# An engine is used where the mean IoU of its classes with those of torch in float32 is at least this.
LEAST_AGREEMENT = 0.999
# The IoU of a class with fewer pixels than this says little; those count by the pixels that agree.
LEAST_PIXELS = 1000
# Compiled models are made for one shape each; a host sends one or two.
_MOST_SHAPES = 4

Outputs = tuple[torch.Tensor, ...]
Run = Callable[[torch.Tensor], Outputs]
"""Normalised images (n, bands, rows, cols) -> what the network gives, float32, on the same device."""


class EngineError(Exception):
    """An execution engine cannot run this network here."""


class Classes:
    """Compares engines by the class of each pixel: the highest of one tensor of logits."""

    unit = "pixels"

    def answers(self, run: Run, images: torch.Tensor) -> Any:
        """What is compared: class numbers (n, rows, cols)."""
        return best(run(images)[0]).cpu().numpy().astype(np.uint16)

    def size(self, answers: Any) -> int:
        """How much was compared."""
        return int(answers.size)

    def agreement(self, wanted: list[Any], found: list[Any]) -> float:
        """From 0 to 1; see the function of this name."""
        return agreement(wanted, found)


class Execution:
    """Runs a network by the engine that was asked for, once that is known to agree with torch in float32.

    Args:
        module: the network in float32 on its device, in evaluation mode; gives a tensor or a tuple of them.
        shape: of the input that it will mostly see: (n, bands, rows, cols).
        engine: one of ``ENGINES``.
        precision: one of ``PRECISIONS``.
        judge: what is compared, and how; classes of pixels by default.

    Attributes:
        report: ``execution_engine`` and ``precision`` that really compute, ``asked`` (both), ``agreement``
            (mean IoU with torch in float32, None where nothing was compared), number of ``pixels`` (or of
            what else the judge compares) and ``fell_back``: why faster ones were left, in words; empty where
            the wish was granted.
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
        self._judge: Any = judge or Classes()
        self._run: Run | None = None
        self.report: dict[str, Any] = {}
        if self._asked == REFERENCE:
            self._use(REFERENCE, None, 0, [])

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """The first of :meth:`outputs`: of pixel classification logits (n, scores, rows, cols)."""
        return self.outputs(images)[0]

    def outputs(self, images: torch.Tensor) -> Outputs:
        """Normalised images (n, bands, rows, cols) -> what the network gives, float32, same device.

        It is to be used up before the next call. A host that never calls ``settle`` has the engine compared
        on the first images it sends.
        """
        if self._run is None:
            self.settle([images])
        assert self._run is not None
        return self._run(images)

    def settle(
        self, batches: Iterable[torch.Tensor], decided: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Decides which engine computes; the report.

        Args:
            batches: normalised images (n, bands, rows, cols) to compare on.
            decided: the report of another process of the same run, which is followed without comparing.

        Raises:
            EngineError: what was decided elsewhere cannot be had here.
        """
        if decided is not None:
            chosen = (str(decided["execution_engine"]), str(decided["precision"]))
            self._run = _make(self._module, self._shape, *chosen)
            self.report = dict(decided)
            return self.report
        reference = _make(self._module, self._shape, *REFERENCE)
        wanted: list[Any] = []
        chips = list(batches)
        reasons: list[str] = []
        if not chips:
            reasons.append("there was no imagery to compare engines on")
        for choice in _ladder(self._asked):
            if choice == REFERENCE or not chips:
                break
            words = " in ".join(choice)
            with torch.inference_mode():
                # Not guarded: where torch in float32 fails, for want of memory say, nothing else is better.
                wanted = wanted or [self._judge.answers(reference, batch) for batch in chips]
            try:
                run = _make(self._module, self._shape, *choice)
                with torch.inference_mode():
                    found = [self._judge.answers(run, batch) for batch in chips]
            # Engines raise what they like; the run goes on without them, and says so.
            except Exception as error:  # noqa: BLE001
                text = str(error).strip().splitlines() or [""]
                reasons.append(
                    f"{words} does not run this network here: {type(error).__name__}: {text[0][:300]}"
                )
                continue
            same = self._judge.agreement(wanted, found)
            if same >= LEAST_AGREEMENT:
                self._use(choice, same, sum(map(self._judge.size, wanted)), reasons, run)
                return self.report
            reasons.append(
                f"{words} agrees with {' in '.join(REFERENCE)} to {same:.5f} only; {LEAST_AGREEMENT} is asked"
            )
        self._use(REFERENCE, None, sum(map(self._judge.size, wanted)), reasons)
        return self.report

    def _use(
        self,
        choice: tuple[str, str],
        same: float | None,
        compared: int,
        reasons: list[str],
        run: Run | None = None,
    ) -> None:
        self._run = run or _make(self._module, self._shape, *choice)
        self.report = {
            "execution_engine": choice[0],
            "precision": choice[1],
            "asked": list(self._asked),
            "agreement": same,
            self._judge.unit: compared,
            "fell_back": reasons,
        }


def agreement(wanted: list[np.ndarray], found: list[np.ndarray]) -> float:
    """Mean IoU over the classes; where all are rare, the part of the pixels that agree; the smaller of both.

    Args:
        wanted, found: class numbers from 0 to 65535, arrays of the same shapes.
    """
    classes = 1 + max((int(max(a.max(), b.max())) for a, b in zip(wanted, found) if a.size), default=0)  # noqa: B905
    together = np.zeros((classes, classes), np.int64)
    for one, other in zip(wanted, found):  # noqa: B905
        pairs = one.astype(np.int64).ravel() * classes + other.ravel()
        together += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    total = int(together.sum())
    if total == 0:
        return 1.0
    right = together.diagonal()
    union = together.sum(axis=0) + together.sum(axis=1) - right
    told = union >= LEAST_PIXELS
    pixels = float(right.sum() / total)
    return min(pixels, float((right[told] / union[told]).mean())) if told.any() else pixels


def best(scores: torch.Tensor) -> torch.Tensor:
    """Number of the highest score: (n, scores, rows, cols) -> (n, rows, cols); of equal ones the first.

    ``max`` gives the same as ``argmax`` over this axis and takes a tenth of its time on a CPU.
    """
    return scores.max(dim=1).indices


def _ladder(asked: tuple[str, str]) -> list[tuple[str, str]]:
    """What is tried, in order: what was asked, the same engine in float32, torch in float32."""
    return list(dict.fromkeys([asked, (asked[0], "FLOAT32"), REFERENCE]))


def _make(module: torch.nn.Module, shape: tuple[int, int, int, int], engine: str, precision: str) -> Run:
    if engine in ("TORCH", "COMPILED"):
        return _torch(module, shape, precision, compiled=engine == "COMPILED")
    if next(module.parameters()).device.type != "cpu":
        raise EngineError(f"{engine} is used on a CPU; on a GPU torch computes")
    make = _openvino if engine == "OPENVINO" else _onnxruntime
    # One image of the real size: what a network computes from its input's size is traced as it will be.
    example = torch.zeros(1, *shape[1:])
    # Tracing outside of inference mode, and of a copy: the weights' layout is torch's alone.
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every number that it takes for a constant
        plain = copy.deepcopy(module).to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        trace: Any = torch.jit.trace
        return make(trace(plain, example, check_trace=False), example, precision)


def _tensors(given: Any) -> Outputs:
    return (given,) if isinstance(given, torch.Tensor) else tuple(given)


def _torch(
    module: torch.nn.Module, shape: tuple[int, int, int, int], precision: str, *, compiled: bool
) -> Run:
    narrow = precision == "BFLOAT16"
    network: Any = _narrowed(module, shape) if narrow else module
    if compiled:
        # Shapes are few and fixed: a kernel each, as for the other engines.
        network = torch.compile(network, dynamic=False)

    def run(images: torch.Tensor) -> Outputs:
        given = images.to(torch.bfloat16) if narrow else images
        return tuple(one.float() for one in _tensors(network(given)))

    return run


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


def _openvino(traced: Any, example: torch.Tensor, precision: str) -> Run:
    try:
        import openvino  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise EngineError("the Python that runs the package has no openvino") from error
    free = openvino.PartialShape([-1, example.shape[1], -1, -1])
    model = openvino.convert_model(traced, example_input=example, input=[free])
    core = openvino.Core()
    settings = {
        # Stated in float32, too: by itself OpenVINO takes bfloat16 where the processor has it.
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "BFLOAT16" else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_HYPER_THREADING": True,
    }
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

    return run


def _onnxruntime(traced: Any, example: torch.Tensor, precision: str) -> Run:
    if precision != "FLOAT32":
        raise EngineError("ONNX Runtime computes in float32 on a CPU")
    try:
        import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise EngineError("the Python that runs the package has no onnxruntime") from error
    stream: Any = io.BytesIO()
    free = {0: "n", 2: "rows", 3: "cols"}
    outputs = {f"output{number}": one.ndim for number, one in enumerate(_tensors(traced(example)))}
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
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the reader's and the writer's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(stream.getvalue(), options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> Outputs:
        found = session.run(None, {"images": images.contiguous().numpy()})
        return tuple(torch.from_numpy(one) for one in found)

    return run
