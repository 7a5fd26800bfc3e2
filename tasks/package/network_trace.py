"""Following a network's forward with ``torch.fx``; see :mod:`tasks.package.network_source`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import fx, nn

REMEDY = (
    "Build the network from plain torch.nn layers and tensor operations whose path does not depend on the "
    "data, or register the module with a source of its own."
)

_SAME_CONVOLUTION_CLASSES = {"Conv2dSame", "Conv2dDynamicSamePadding"}  # timm; efficientnet_pytorch

# What asks for the number of channels, of all things that a forward may branch on: it is the network's own.
_COMPARISONS = (operator.eq, operator.ne, operator.gt, operator.ge, operator.lt, operator.le)
_CHANNELS = 1  # index in (n, channels, rows, cols)
_PROBE_PX = 64
_FOREIGN = "encoder"
# Images of other numbers and sizes: what is answered alike for all of them is the network's own, too.
_PROBES = ((1, 128, 256), (2, 256, 128))


def trace(module: nn.Module) -> fx.Graph:
    """The graph of ``module``'s forward.

    Raises:
        fx.proxy.TraceError: the forward depends on data, or on the size of its input.
    """
    try:
        return _Tracer().trace(module)
    except fx.proxy.TraceError:
        first = next((child for child in module.modules() if isinstance(child, nn.Conv2d)), None)
        if first is None:  # nothing tells the number of bands of an example
            raise
        return _Tracer(_Example(module, first.in_channels)).trace(module)


def trace_settled(module: nn.Module) -> fx.Graph:
    """The graph of a forward that asks about sizes, where each answer is the same for images of any size.

    That it is gets checked with images of several numbers and sizes; in its ``encoder``, which may be
    anybody's, only what :func:`trace` answers is. What nobody uses is left out.

    Raises:
        fx.proxy.TraceError: an answer depends on the data, or on the size of the input.
    """
    first = next(child for child in module.modules() if isinstance(child, nn.Conv2d))
    examples = [_Example(module, first.in_channels, shape) for shape in _PROBES]
    graph = _SettledTracer(examples).trace(module)
    for node in graph.nodes:
        if node.target is torch.concat:  # the same by another name, which converters to ONNX do not know
            node.target = torch.cat
    graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
    return graph


class _Tracer(fx.Tracer):
    """Follows decoders that ask how many channels a feature has, and that loop over its rows and columns.

    Args:
        example: what an example input gave; None: such questions end the trace.
    """

    def __init__(self, example: _Example | None = None) -> None:
        super().__init__()
        self.example = example

    def to_bool(self, obj: fx.Proxy) -> bool:
        node = obj.node
        if (
            self.example is not None
            and node.op == "call_function"
            and node.target in _COMPARISONS
            and any(_asks_channels(item) for item in node.args)
            and all(isinstance(item, int) or _asks_channels(item) for item in node.args)
        ):
            return bool(self.example.value(node))
        return bool(super().to_bool(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        node = obj.node
        part = node.op == "call_function" and node.target is operator.getitem and _is_shape(node.args[0])
        if self.example is not None and part:
            # A part of a shape: its length is known, its numbers stay open.
            length = len(self.example.value(node))
            return iter(
                [self.create_proxy("call_function", operator.getitem, (obj, i), {}) for i in range(length)]
            )
        return super().iter(obj)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:  # noqa: ARG002 - fx's name
        if is_same_convolution(m):
            return True
        # Only classes of torch.nn itself are written as constructor calls; subclasses are followed inside.
        return is_torch_layer(m) and not isinstance(m, nn.Sequential)


class _SettledTracer(_Tracer):
    """Answers each question that has one answer for all examples."""

    # A buffer's forms (another number type, another shape) are followed as a tensor's are.
    proxy_buffer_attributes = True

    def __init__(self, examples: list[_Example]) -> None:
        super().__init__(examples[0])
        self.examples = examples

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def to_bool(self, obj: fx.Proxy) -> bool:
        if any(path.split(".")[0] == _FOREIGN for path in self.module_stack):
            return bool(super().to_bool(obj))
        answers = {bool(example.value(obj.node)) for example in self.examples}
        return answers.pop() if len(answers) == 1 else bool(super().to_bool(obj))

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        return iter([cast(Any, obj)[index] for index in range(self.length(obj))])

    def length(self, obj: fx.Proxy) -> int:
        """How many parts a shape, or what a layer gave, has.

        Raises:
            fx.proxy.TraceError: it depends on the input, or it is a tensor.
        """
        values = [example.value(obj.node) for example in self.examples]
        if not all(isinstance(value, tuple | list) for value in values) or len(set(map(len, values))) > 1:
            raise fx.proxy.TraceError(f"the length of {obj.node} depends on the data")
        return len(values[0])


class _Proxy(fx.Proxy):
    """fx's own knows no ``abs``, and no length, which ``(*shape[:2], 4)`` and ``list(x.split(2))`` need."""

    def __len__(self) -> int:
        assert isinstance(self.tracer, _SettledTracer)
        return self.tracer.length(self)

    def __abs__(self) -> Any:
        return torch.abs(cast(Any, self))


class _Example:
    """What each layer gives for an example input, recorded before the trace: no layer can be called in it."""

    def __init__(
        self, module: nn.Module, bands: int, shape: tuple[int, int, int] = (1, _PROBE_PX, _PROBE_PX)
    ) -> None:
        self.results: dict[str, list[Any]] = {}
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.input = torch.zeros(shape[0], bands, *shape[1:])
        self._values: dict[fx.Node, Any] = {}
        hooks = []
        for name, child in module.named_modules():
            kept: list[Any] = []
            self.results[name] = kept
            hooks.append(child.register_forward_hook(_recorder(kept)))
        try:
            with torch.no_grad():
                module(self.input.to(next(module.parameters()).device))
        finally:
            for hook in hooks:
                hook.remove()

    def value(self, wanted: fx.Node) -> Any:
        """What the node gives; all before it is computed first, once."""
        for node in wanted.graph.nodes:
            if node not in self._values:
                self._values[node] = self._compute(node)
        return self._values[wanted]

    def _compute(self, node: fx.Node) -> Any:
        given, named = fx.node.map_arg((node.args, node.kwargs), self._values.__getitem__)
        target = node.target
        with torch.no_grad():
            if node.op == "placeholder":
                return self.input
            if node.op == "get_attr":
                return self.tensors[str(target)]
            if node.op == "call_module":
                return self.results[str(target)].pop(0)
            if node.op == "call_method":
                return getattr(given[0], str(target))(*given[1:], **named)
            assert callable(target)
            return target(*given, **named)


def _recorder(kept: list[Any]) -> Callable[[nn.Module, Any, Any], None]:
    def record(_module: nn.Module, _inputs: Any, output: Any) -> None:
        kept.append(output)

    return record


def _is_shape(node: Any) -> bool:
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1
    return node.op == "call_function" and node.target is getattr and node.args[1] == "shape"


def _asks_channels(node: Any) -> bool:
    """Whether the node is ``x.shape[1]`` or ``x.size(1)``."""
    if not isinstance(node, fx.Node):
        return False
    if node.op == "call_method":
        return node.target == "size" and node.args[1:] == (_CHANNELS,)
    picked = node.op == "call_function" and node.target is operator.getitem
    return bool(picked and node.args[1] == _CHANNELS and _is_shape(node.args[0]))


def is_torch_layer(module: nn.Module) -> bool:
    kind = type(module)
    return kind.__module__.startswith("torch.nn.modules.") and getattr(nn, kind.__name__, None) is kind


def is_same_convolution(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and type(module).__name__ in _SAME_CONVOLUTION_CLASSES
