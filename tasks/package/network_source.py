"""How a network travels: as readable Python source beside a plain state_dict.

The module is traced with ``torch.fx`` and written out: its tree of plain ``torch.nn`` layers with their
constructor arguments, and one ``forward``. The source needs torch alone (torchvision for detectors), names
its parameters exactly as the original does, and keeps sizes dynamic.

Why this and not an exported archive: a ``torch.export`` or TorchScript file is tied to the torch release
and to its pickle-like containers, cannot be read by a person who must decide whether to trust it, and does
not leave the weights as the plain state_dict that ``.dlpk`` readers expect (``docs/formats/emd-dlpk.md``).
Source and state_dict work with every torch release that still has the layers, on every device.

Torchvision's detectors branch on data and cannot be traced: their backbone is written out, and the detector
around it is rebuilt from explicit arguments with torchvision's own classes.
"""

from __future__ import annotations

import ast
import builtins
import inspect
import math
import operator
import re
import textwrap
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from tasks.errors import PackageError
from tasks.package.network_trace import REMEDY, is_same_convolution, is_torch_layer, trace

DetectorName = Literal["FCOS", "RETINANET", "SSD", "FASTERRCNN", "MASKRCNN"]

_INLINE_NUMBERS = 4096  # a tensor that is no part of the state_dict is written out up to this size

# A TensorFlow-style convolution pads by the input's size, which no trace can follow: it is one layer here.
_SAME_CONVOLUTION = '''
class SamePadConv2d(nn.Conv2d):
    """Convolution padded so that the output has ceil(size / stride) rows and columns, as in TensorFlow."""

    def forward(self, x):
        rows, cols = x.shape[-2:]
        kernel, stride, dilation = self.kernel_size, self.stride, self.dilation
        down = max((-(-rows // stride[0]) - 1) * stride[0] + (kernel[0] - 1) * dilation[0] + 1 - rows, 0)
        right = max((-(-cols // stride[1]) - 1) * stride[1] + (kernel[1] - 1) * dilation[1] + 1 - cols, 0)
        x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        return F.conv2d(x, self.weight, self.bias, stride, 0, dilation, self.groups)
'''


def emit_network(module: nn.Module, class_name: str = "Network") -> str:
    """Python source whose ``build()`` returns an inference twin of ``module``.

    The twin has the state_dict keys and shapes of ``module`` (a plain state_dict loads strictly), is in
    evaluation mode and computes the same function as ``module.eval()``. ``module`` is left as it was.

    Args:
        module: takes one tensor (n, bands, rows, cols); returns tensors, or lists or dicts of them.
        class_name: name of the class in the source.

    Raises:
        PackageError: the forward depends on data, or a layer has no plain constructor.
    """
    body, helpers = class_source(module, class_name)
    return document(
        [class_name, "traced by Chipline from " + type(module).__name__],
        helpers + body,
        f"    return {class_name}().eval()",
        detection=False,
    )


def emit_networks(modules: Mapping[str, nn.Module]) -> str:
    """Python source whose ``build()`` returns twins of several networks, parts of one module by their names.

    The state_dict keys are those of a module that holds the networks under these names. The module that
    ``build()`` gives computes nothing itself.

    Raises:
        PackageError: see :func:`emit_network`.
    """
    bodies, helpers = [], ""
    for number, module in enumerate(modules.values()):
        body, needed = class_source(module, f"Network{number}")
        bodies.append(body)
        helpers = needed or helpers
    lines = [f"    put(networks, {name!r}, Network{number}())" for number, name in enumerate(modules)]
    return document(
        ["Networks " + ", ".join(modules), "traced by Chipline"],
        helpers + "\n\n".join(bodies),
        "\n".join(["    networks = Group()", *lines, "    return networks.eval()"]),
        detection=False,
    )


def emit_detector(
    backbone: nn.Module, detector: DetectorName, arguments: Mapping[str, Any], class_name: str = "Backbone"
) -> str:
    """Python source whose ``build()`` returns a torchvision detector around ``backbone``.

    The state_dict keys are those of :func:`build_detector` for the same arguments (``backbone.…``,
    ``head.…``), so that a training which uses ``build_detector`` needs no translation.

    Args:
        backbone: takes (n, bands, rows, cols), returns a tensor or a dict of feature maps, finest first;
            has the attribute ``out_channels``.
        detector: which torchvision class.
        arguments: plain values only, see :func:`build_detector`.

    Raises:
        PackageError: see :func:`emit_network`; an argument is no plain value.
    """
    out_channels = getattr(backbone, "out_channels", None)
    if not isinstance(out_channels, int):
        raise PackageError("The detector's backbone has no attribute out_channels.", "Set it to an int.")
    body, helpers = class_source(backbone, class_name)
    build_source = textwrap.dedent(inspect.getsource(build_detector))
    # The one function that builds detectors is the one that travels.
    start = build_source.index("    # -- travels from here")
    plain = {key: _plain(value, f"argument {key!r}") for key, value in sorted(arguments.items())}
    rebuilt = (
        "def build_detector(backbone, detector, arguments):\n"
        + build_source[start:].rstrip()
        + "\n\n\nARGUMENTS = {\n"
        + "".join(f"    {key!r}: {value!r},\n" for key, value in plain.items())
        + "}\n"
    )
    closing = (
        f"    backbone = {class_name}()\n"
        f"    backbone.out_channels = {out_channels}\n"
        f"    return build_detector(backbone, {detector!r}, ARGUMENTS).eval()"
    )
    return document(
        [class_name, "traced by Chipline; the detector is torchvision's " + detector],
        helpers + body + "\n\n" + rebuilt,
        closing,
        detection=True,
    )


def build_detector(backbone: nn.Module, detector: DetectorName, arguments: Mapping[str, Any]) -> nn.Module:
    """A torchvision detector that takes normalised images of any size and resizes nothing.

    Args:
        backbone: see :func:`emit_detector`.
        detector: FCOS, RETINANET, SSD, FASTERRCNN or MASKRCNN.
        arguments: ``num_classes`` (int; with the background, whose label is 0; FCOS labels start at 0 in
            torchvision, so keep 0 free there as well), ``anchor_sizes`` and ``aspect_ratios`` (one tuple per
            feature map; FCOS: one size each, aspect ratio 1), ``head_convolutions`` (int, layers of the head;
            FCOS only), ``size_divisible`` (int, images are filled up to a multiple of it), ``score_thresh``,
            ``nms_thresh``, ``detections_per_img``, ``topk_candidates`` and further plain keywords of the
            torchvision class, ``featmap_names`` for SSD, FASTERRCNN and MASKRCNN, and ``mask_width``,
            the channels of MASKRCNN's mask head.

    Returns:
        The detector: ``model([image (bands, rows, cols) float32, ...])`` in evaluation mode gives dicts of
        boxes (n, 4) xmin, ymin, xmax, ymax in pixels, labels (n,) and scores (n,); MASKRCNN: masks
        (n, 1, rows, cols) 0-1, too.
    """
    # -- travels from here: torch and torchvision only, names fully imported --
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    values = dict(arguments)
    number_of_classes = values.pop("num_classes")
    sizes = values.pop("anchor_sizes")
    ratios = values.pop("aspect_ratios", tuple((1.0,) for _ in sizes))
    convolutions = values.pop("head_convolutions", 4)
    bands = values.pop("bands", 3)
    # The images come normalised and at their final size: the detector's own transform must change nothing.
    values.update(image_mean=[0.0] * bands, image_std=[1.0] * bands, _skip_resize=True)
    anchors = AnchorGenerator(sizes=tuple(map(tuple, sizes)), aspect_ratios=tuple(map(tuple, ratios)))
    if detector == "FCOS":
        head = detection.fcos.FCOSHead(
            backbone.out_channels, anchors.num_anchors_per_location()[0], number_of_classes, convolutions
        )
        model = detection.FCOS(backbone, number_of_classes, anchor_generator=anchors, head=head, **values)
    elif detector == "RETINANET":
        model = detection.RetinaNet(backbone, number_of_classes, anchor_generator=anchors, **values)
    elif detector == "SSD":
        divisor = values.pop("size_divisible", 1)
        channels = [backbone.out_channels] * len(values.pop("featmap_names"))
        head = detection.ssd.SSDHead(channels, anchors.num_anchors_per_location(), number_of_classes)
        # Anchors in pixels, so that they keep their size in tiles of any size; SSD's own are shares of one.
        model = detection.ssd.SSD(backbone, anchors, (1, 1), number_of_classes, head=head, **values)
        model.transform.size_divisible = divisor
    elif detector in ("FASTERRCNN", "MASKRCNN"):
        from torchvision.ops import MultiScaleRoIAlign

        names = list(values.pop("featmap_names", ["0"]))
        pool = MultiScaleRoIAlign(featmap_names=names, output_size=7, sampling_ratio=2)
        values.update(rpn_anchor_generator=anchors, box_roi_pool=pool)
        if detector == "MASKRCNN":
            width = values.pop("mask_width", 256)
            values.update(
                mask_roi_pool=MultiScaleRoIAlign(featmap_names=names, output_size=14, sampling_ratio=2),
                mask_head=detection.mask_rcnn.MaskRCNNHeads(backbone.out_channels, (width,) * 4, 1),
            )
            model = detection.MaskRCNN(backbone, number_of_classes, **values)
            predictor = detection.mask_rcnn.MaskRCNNPredictor(width, width, number_of_classes)
            model.roi_heads.mask_predictor = predictor
        else:
            model = detection.FasterRCNN(backbone, number_of_classes, **values)
    else:
        raise ValueError(f"unknown detector {detector!r}")
    # torchvision honours _skip_resize in training only.
    model.transform.resize = lambda image, target=None: (image, target)
    network: nn.Module = model
    return network


def load_network(source: str, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """The network of a source that was made here, with its weights, in evaluation mode.

    The source is executed: never call this with a source from elsewhere.

    Raises:
        PackageError: the keys or shapes do not fit.
    """
    namespace = types.ModuleType("chipline_network")
    exec(compile(source, "<network>", "exec"), namespace.__dict__)
    network = namespace.build()
    if not isinstance(network, nn.Module):
        raise PackageError("build() of the network's source gave no module.", "Emit the source again.")
    try:
        network.load_state_dict(dict(state_dict), strict=True)
    except RuntimeError as error:
        raise PackageError(
            f"The weights do not fit the network's source: {error}.",
            "Emit the source from the very network that the weights belong to.",
        ) from error
    return network.eval()


# -- tracing -----------------------------------------------------------------------------------------------


@contextmanager
def _inference_mode_of(module: nn.Module) -> Iterator[None]:
    """``module`` in evaluation mode and without smp's check of the input size; restored afterwards."""
    modes = {name: child.training for name, child in module.named_modules()}
    missing = object()
    checked: list[tuple[nn.Module, object]] = []
    try:
        module.eval()
        for child in module.modules():
            # The check compares sizes, which are not known while tracing; the function checks them itself.
            if getattr(type(child), "requires_divisible_input_shape", None) is not None:
                checked.append((child, child.__dict__.get("requires_divisible_input_shape", missing)))
                child.__dict__["requires_divisible_input_shape"] = False
        yield
    finally:
        for child, before in checked:
            if before is missing:
                del child.__dict__["requires_divisible_input_shape"]
            else:
                child.__dict__["requires_divisible_input_shape"] = before
        for name, child in module.named_modules():
            child.training = modes[name]


def class_source(
    module: nn.Module, class_name: str, tracer: Callable[[nn.Module], fx.Graph] = trace
) -> tuple[str, str]:
    """The source of a class that computes what ``module`` does, and of what it is built on.

    Args:
        tracer: follows the forward.

    Raises:
        PackageError: see :func:`emit_network`.
    """
    if not class_name.isidentifier():
        raise PackageError(f"{class_name!r} is no name for a Python class.", "Use letters, digits and _.")
    with _inference_mode_of(module):
        try:
            graph = tracer(module)
        except PackageError:
            raise
        except Exception as error:  # foreign forward code may raise anything while it is traced
            name, kind = type(module).__name__, type(error).__name__
            raise PackageError(
                f"The network {name} cannot be written out: {kind}: {error}.", REMEDY
            ) from error
        for node in graph.nodes:
            node.type = None  # annotations name things of the original's own module
        _drop_assertions(graph)
        _fold_norms(module, graph)
        _drop_idle(module, graph)
        constants = _constants(module, graph)
        layers, needs_same = _layers(module, graph)
        forward = _forward_source(graph)
    lines = [f"class {class_name}(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    lines += ["        " + line for line in layers + constants]
    lines += ["", *("    " + line if line else "" for line in forward.splitlines())]
    return "\n".join(lines) + "\n", (_SAME_CONVOLUTION.lstrip("\n") + "\n\n" if needs_same else "")


_READERS = (getattr, operator.eq, operator.ne, operator.getitem, operator.gt, operator.ge, operator.mod)


def _drop_assertions(graph: fx.Graph) -> None:
    # torch._assert(x.ndim == 4, f"...{x}...") carries proxies' texts; shapes are checked by the function.
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is torch._assert:
            graph.erase_node(node)


def _fold_norms(module: nn.Module, graph: fx.Graph) -> None:
    """``F.batch_norm(x, bn.running_mean, …)`` inside a subclass of a batch norm becomes ``bn(x)``."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not F.batch_norm:
            continue
        given = dict(zip(("input", "running_mean", "running_var", "weight", "bias"), node.args, strict=False))
        given.update(node.kwargs)
        mean = given.get("running_mean")
        if given.get("training") is not False or not isinstance(mean, fx.Node) or mean.op != "get_attr":
            continue
        owner = str(mean.target).rpartition(".")[0]
        norm = module.get_submodule(owner)
        if not isinstance(norm, nn.BatchNorm2d) or given.get("eps") != norm.eps:
            continue
        tensors = [given.get(key) for key in ("running_mean", "running_var", "weight", "bias")]
        names = [item.target if isinstance(item, fx.Node) else None for item in tensors]
        if names != [f"{owner}.{key}" for key in ("running_mean", "running_var", "weight", "bias")]:
            continue
        with graph.inserting_before(node):
            replacement = graph.call_module(owner, (given["input"],))
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)


def _drop_idle(module: nn.Module, graph: fx.Graph) -> None:
    """Removes what computes nothing: identities, and reads whose result nobody uses."""
    for node in reversed(list(graph.nodes)):
        reads = node.op == "get_attr" or (node.op == "call_function" and node.target in _READERS)
        if reads and not node.users:
            graph.erase_node(node)
        elif node.op == "call_module" and type(module.get_submodule(str(node.target))) is nn.Identity:
            source = node.args[0]
            if isinstance(source, fx.Node):
                node.replace_all_uses_with(source)
                graph.erase_node(node)


_NUMBERED = re.compile(r'getattr\(([\w.\[\]]+), "(\d+)"\)')  # fx's way to say self.blocks[0]
_FORWARD_NAMES = {"torch": torch, "math": math, "operator": operator, "device": torch.device}


def _forward_source(graph: fx.Graph) -> str:
    code = graph.python_code("self")
    source = code.src.strip()
    for annotation in (" -> torch_Tensor", " : torch_Tensor"):
        source = source.replace(annotation, "")
    while (indexed := _NUMBERED.sub(r"\1[\2]", source)) != source:
        source = indexed
    used = {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}
    for name, value in code.globals.items():
        known = name in ("inf", "nan") or value in (_FORWARD_NAMES.get(name), getattr(builtins, name, None))
        if name in used and not known:
            raise PackageError(f"The network calls {name} ({value!r}), which is no part of torch.", REMEDY)
    return source


# -- writing -----------------------------------------------------------------------------------------------


def _layers(module: nn.Module, graph: fx.Graph) -> tuple[list[str], bool]:
    """One line per layer, parameter and buffer, in the module's own order."""
    called = {str(node.target) for node in graph.nodes if node.op == "call_module"}
    persistent = set(module.state_dict())
    lines: list[str] = []
    written: dict[int, str] = {}
    inside: list[str] = []  # prefixes of layers that are written whole
    same = False
    for name, child in module.named_modules(remove_duplicate=False):
        if any(name.startswith(prefix) for prefix in inside):
            continue
        if name and id(child) in written:
            lines.append(f"put(self, {name!r}, self.get_submodule({written[id(child)]!r}))")
            inside.append(name + ".")
            continue
        is_same = is_same_convolution(child)
        if name and (is_same or (is_torch_layer(child) and not _is_container(child))):
            if name in called or child.state_dict():
                lines.append(f"put(self, {name!r}, {_constructor(child, name, is_same)})")
                written[id(child)] = name
                same = same or is_same
            inside.append(name + ".")
            continue
        if name in called and isinstance(child, nn.BatchNorm2d):
            # A folded norm: its layer, and its own children (activation) beneath it.
            lines.append(f"put(self, {name!r}, {_constructor(child, name, is_same)})")
            written[id(child)] = name
            continue
        if name and getattr(child, "parametrizations", None):
            raise PackageError(f"The layer {name} has parametrizations.", "Remove them before packaging.")
        own = [*child.named_parameters(recurse=False), *child.named_buffers(recurse=False)]
        for key, tensor in own:
            path = f"{name}.{key}" if name else key
            if path in persistent:
                kind = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
                shape, dtype = tuple(tensor.shape), tensor.dtype
                lines.append(f"{kind}(self, {path!r}, torch.zeros({shape}, dtype={dtype}))")
        if own and name:
            written[id(child)] = name
    return lines, same


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _constructor(layer: nn.Module, name: str, is_same: bool) -> str:
    """``nn.Conv2d(3, 64, …)``: every argument that differs from its default, read from the layer."""
    kind = nn.Conv2d if is_same else nn.BatchNorm2d if isinstance(layer, nn.BatchNorm2d) else type(layer)
    arguments: list[str] = []
    by_name = False
    for parameter in inspect.signature(kind.__init__).parameters.values():
        key = parameter.name
        if key in ("self", "device", "dtype"):
            continue
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            # nn.Identity takes and ignores anything.
            continue
        if is_same and key in ("padding", "padding_mode"):
            by_name = True
            continue
        if not hasattr(layer, key):
            raise PackageError(f"The layer {name} ({kind.__name__}) does not keep its {key}.", REMEDY)
        value = getattr(layer, key)
        if key == "bias" and not isinstance(value, bool):
            value = value is not None
        value = _plain(value, f"{key} of the layer {name}")
        if value == _plain_or_none(parameter.default) and parameter.default is not parameter.empty:
            by_name = True
            continue
        if not _says_default(parameter, value):
            arguments.append(f"{key}={value!r}" if by_name else repr(value))
        by_name = by_name or parameter.default is not parameter.empty
    return f"{'SamePadConv2d' if is_same else 'nn.' + kind.__name__}({', '.join(arguments)})"


def _says_default(parameter: inspect.Parameter, value: Any) -> bool:
    # Conv2d keeps stride=1 as (1, 1).
    default = parameter.default
    return isinstance(default, int) and not isinstance(default, bool) and value == (default,) * 2


def _plain_or_none(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool | tuple) else None


def _plain(value: Any, what: str) -> Any:
    """``value`` if Python source can say it."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
    elif isinstance(value, tuple | list):
        return (
            type(value)(_plain(item, what) for item in value)
            if type(value) in (tuple, list)
            else tuple(_plain(item, what) for item in value)
        )
    elif isinstance(value, Mapping):
        return {str(key): _plain(item, what) for key, item in value.items()}
    raise PackageError(f"The {what} is {value!r}, which source cannot state.", REMEDY)


def _constants(module: nn.Module, graph: fx.Graph) -> list[str]:
    """Lines for tensors that the forward uses and the state_dict does not hold."""
    persistent = set(module.state_dict())
    lines = []
    for path in sorted({str(node.target) for node in graph.nodes if node.op == "get_attr"} - persistent):
        owner, _, key = path.rpartition(".")
        tensor = getattr(module.get_submodule(owner), key)
        if not isinstance(tensor, Tensor):
            raise PackageError(f"The network uses {path}, which is no tensor.", REMEDY)
        if tensor.numel() > _INLINE_NUMBERS:
            raise PackageError(
                f"The network uses the tensor {path} of {tensor.numel()} numbers, which its state_dict "
                "does not hold.",
                "Register it as a persistent buffer.",
            )
        values = tensor.detach().cpu().tolist()
        lines.append(
            f"buffer(self, {path!r}, torch.tensor({values!r}, dtype={tensor.dtype}), persistent=False)"
        )
        if key.startswith("_tensor_constant"):
            delattr(module, key)  # the tracer left it on the module
    return lines


def document(title: list[str], body: str, closing: str, *, detection: bool) -> str:
    """A whole source: ``body`` between what every one of them has and ``build()``, which does ``closing``."""
    needs = "torch and torchvision" if detection else "torch"
    return f'''"""{title[0]}: {title[1]}. Needs {needs} only.

``build()`` returns the network in evaluation mode, without weights: load the state_dict beside it.
"""

import math  # noqa: F401
import operator  # noqa: F401

import torch
import torch.nn.functional as F  # noqa: F401
from torch import device, inf, nan, nn  # noqa: F401


class Group(nn.Module):
    """Layers by name or number."""

    def __getitem__(self, number):
        return self._modules[str(number)]


def owner_of(root, path):
    """The module that holds ``path``'s last name; empty modules are made on the way."""
    *parents, key = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, Group())
        root = root._modules[name]
    return root, key


def put(root, path, layer):
    owner, key = owner_of(root, path)
    owner.add_module(key, layer)


def parameter(root, path, tensor):
    owner, key = owner_of(root, path)
    owner.register_parameter(key, nn.Parameter(tensor, requires_grad=False))


def buffer(root, path, tensor, persistent=True):
    owner, key = owner_of(root, path)
    owner.register_buffer(key, tensor, persistent=persistent)


{body}

def build():
{closing}
'''
