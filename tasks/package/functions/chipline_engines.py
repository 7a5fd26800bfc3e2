"""Execution engines of a packaged network: torch, ONNX Runtime or OpenVINO, in float32 or bfloat16.

This file travels inside packages beside ``chipline_runtime.py``. Torch alone is needed; the other engines are
looked up when one is asked for, and are made from the torch network in this process. An engine's classes are
compared with those of torch in float32 before its first result is used (``Execution.settle``): one that
disagrees, or is not there, gives way to the next slower one, and ``Execution.report`` says so.
"""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

ENGINES = ("TORCH", "ONNXRUNTIME", "OPENVINO")
PRECISIONS = ("FLOAT32", "BFLOAT16")
REFERENCE = ("TORCH", "FLOAT32")

# An engine is used where the mean IoU of its classes with those of torch in float32 is at least this.
LEAST_AGREEMENT = 0.999
# The IoU of a class with fewer pixels than this says little; those count by the pixels that agree.
LEAST_PIXELS = 1000
# Compiled models are made for one shape each; a host sends one or two.
_MOST_SHAPES = 4

Logits = Callable[[torch.Tensor], torch.Tensor]


class EngineError(Exception):
    """An execution engine cannot run this network here."""


class Execution:
    """Runs a network by the engine that was asked for, once that is known to agree with torch in float32.

    Args:
        module: the network in float32 on its device, in evaluation mode; gives one tensor of logits.
        shape: of the input that it will mostly see: (n, bands, rows, cols).
        engine: one of ``ENGINES``.
        precision: one of ``PRECISIONS``.

    Attributes:
        report: ``execution_engine`` and ``precision`` that really compute, ``asked`` (both), ``agreement``
            (mean IoU with torch in float32, None where nothing was compared), ``pixels`` compared, and
            ``fell_back``: why faster ones were left, in words; empty where the wish was granted.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        shape: tuple[int, int, int, int],
        engine: str = "TORCH",
        precision: str = "FLOAT32",
    ) -> None:
        if engine not in ENGINES or precision not in PRECISIONS:
            raise ValueError(
                f"execution_engine {engine}, precision {precision}: use one of {', '.join(ENGINES)} and "
                f"one of {', '.join(PRECISIONS)}"
            )
        self._module, self._shape, self._asked = module, shape, (engine, precision)
        self._run: Logits | None = None
        self.report: dict[str, Any] = {}
        if self._asked == REFERENCE:
            self._use(REFERENCE, None, 0, [])

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images (n, bands, rows, cols) -> float32 logits (n, scores, rows, cols), same device.

        The logits are to be used up before the next call. A host that never calls ``settle`` has the engine
        compared on the first images it sends.
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
        wanted: list[np.ndarray] = []
        chips = list(batches)
        reasons: list[str] = []
        if not chips:
            reasons.append("there was no imagery to compare engines on")
        for choice in _ladder(self._asked):
            if choice == REFERENCE or not chips:
                break
            words = " in ".join(choice)
            try:
                run = _make(self._module, self._shape, *choice)
                with torch.inference_mode():
                    wanted = wanted or [_classes(reference(batch)) for batch in chips]
                    found = [_classes(run(batch)) for batch in chips]
            # Engines raise what they like; the run goes on without them, and says so.
            except Exception as error:  # noqa: BLE001
                text = str(error).strip().splitlines() or [""]
                reasons.append(
                    f"{words} does not run this network here: {type(error).__name__}: {text[0][:300]}"
                )
                continue
            same = agreement(wanted, found)
            if same >= LEAST_AGREEMENT:
                self._use(choice, same, sum(item.size for item in wanted), reasons, run)
                return self.report
            reasons.append(
                f"{words} agrees with {' in '.join(REFERENCE)} to {same:.5f} only; {LEAST_AGREEMENT} is asked"
            )
        self._use(REFERENCE, None, sum(item.size for item in wanted), reasons)
        return self.report

    def _use(
        self,
        choice: tuple[str, str],
        same: float | None,
        pixels: int,
        reasons: list[str],
        run: Logits | None = None,
    ) -> None:
        self._run = run or _make(self._module, self._shape, *choice)
        self.report = {
            "execution_engine": choice[0],
            "precision": choice[1],
            "asked": list(self._asked),
            "agreement": same,
            "pixels": pixels,
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


def _classes(logits: torch.Tensor) -> np.ndarray:
    result: np.ndarray = best(logits).cpu().numpy().astype(np.uint16)
    return result


def _ladder(asked: tuple[str, str]) -> list[tuple[str, str]]:
    """What is tried, in order: what was asked, the same engine in float32, torch in float32."""
    return list(dict.fromkeys([asked, (asked[0], "FLOAT32"), REFERENCE]))


def _make(module: torch.nn.Module, shape: tuple[int, int, int, int], engine: str, precision: str) -> Logits:
    if engine == "TORCH":
        return _torch(module, precision)
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


def _torch(module: torch.nn.Module, precision: str) -> Logits:
    if precision == "FLOAT32":
        return lambda images: module(images).float()
    # A copy: the float32 network is what this one is compared with.
    narrow = copy.deepcopy(module).to(torch.bfloat16)
    return lambda images: narrow(images.to(torch.bfloat16)).float()


def _openvino(traced: Any, example: torch.Tensor, precision: str) -> Logits:
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

    def run(images: torch.Tensor) -> torch.Tensor:
        shape = tuple(images.shape)
        if shape not in requests:
            if len(requests) >= _MOST_SHAPES:
                requests.clear()
            model.reshape(list(shape))
            requests[shape] = core.compile_model(model, "CPU", settings).create_infer_request()
        given = images.contiguous().numpy()
        # Shared, not copied.
        return torch.from_numpy(requests[shape].infer([given], share_inputs=True, share_outputs=True)[0])

    return run


def _onnxruntime(traced: Any, example: torch.Tensor, precision: str) -> Logits:
    if precision != "FLOAT32":
        raise EngineError("ONNX Runtime computes in float32 on a CPU")
    try:
        import onnxruntime  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError as error:
        raise EngineError("the Python that runs the package has no onnxruntime") from error
    stream: Any = io.BytesIO()
    free = {0: "n", 2: "rows", 3: "cols"}
    torch.onnx.export(
        traced,
        (example,),
        stream,
        dynamo=False,
        opset_version=17,
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": free, "logits": free},
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Threads that spin while they wait would take the reader's and the writer's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(stream.getvalue(), options, providers=["CPUExecutionProvider"])

    def run(images: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(session.run(None, {"images": images.contiguous().numpy()})[0])

    return run
