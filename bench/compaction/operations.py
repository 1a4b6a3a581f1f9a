"""What one node of a traced network does to channels: the list of operations the analysis knows.

Whatever is not named here is `opaque`: its channels are pinned, never removed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bench.compaction.moves import COPIES, is_move
from bench.compaction.own_layers import Shift, layer_class
from bench.networks import HeadProducts

Kind = Literal[
    "input", "parameter", "dense", "depthwise", "norm", "map", "pool", "flatten", "move", "cat", "attention",
    "opaque", "output",
]  # fmt: skip
Evaluate = Callable[[Sequence[Tensor]], Tensor]


class Given(NamedTuple):
    """An input tensor. axis: of its channels; None where they are all pinned, so that any axis will do."""

    shape: tuple[int, ...]
    axis: int | None


@dataclass(frozen=True)
class Operation:
    """kind: see below. axis: of the channels, in the result. takes: the same for each input. uniform: a channel that
    is constant over space stays constant (pooling and moves). identity: a map that changes nothing in eval mode.
    evaluate: a map on values of shape (1, C). product: a map that is a product. reason: why the result is pinned.

    dense: linear layer or convolution, opens a channel space. parameter: a tensor of one number per channel that the
    code reads by itself. depthwise, norm, map, pool: channel by channel. flatten: every channel becomes as many
    features as it has pixels. move: channels elsewhere (see `moves`). cat: along the channels. attention: a product of
    queries, keys and values, whose channels are those of the values.
    """

    kind: Kind
    axis: int = 1
    takes: tuple[int, ...] = ()
    uniform: bool = True
    identity: bool = False
    product: bool = False
    evaluate: Evaluate | None = None
    reason: str = ""


ACTIVATIONS = (
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.PReLU,
    nn.ELU,
    nn.SELU,
    nn.CELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Sigmoid,
    nn.LogSigmoid,
    nn.Tanh,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.Hardtanh,
    nn.Softplus,
    nn.Softsign,
    nn.Softshrink,
    nn.Hardshrink,
    nn.Tanhshrink,
    nn.Threshold,
)
HOMOGENEOUS = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.PReLU,
    nn.Identity,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
)
"""Modules f with f(z·x) = z·f(x) for every z ≥ 0 per channel."""

IDENTITIES = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
ALONG_ONE = (nn.Conv2d, nn.ConvTranspose2d, nn.PReLU, nn.AvgPool2d, *NORMS)
UNIFORM_POOLS = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

IN_PLACE = (
    operator.iadd, operator.isub, operator.imul, operator.itruediv, operator.ifloordiv, operator.imod, operator.ipow,
)  # fmt: skip
ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
QUOTIENTS = {operator.truediv, torch.div, "div"}
"""Known where a tensor is divided by a number."""
_WORDS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "logsigmoid",
    "tanh", "hardswish", "hardsigmoid", "hardtanh", "softplus", "softsign", "softshrink", "hardshrink",
    "tanhshrink", "threshold",
)  # fmt: skip
_MAPS: set[Any] = {
    found
    for home in (F, torch)
    for word in _WORDS
    for found in (getattr(home, word, None), getattr(home, word + "_", None))
    if found is not None
}
_MAPS |= {"relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_"}
_DROPOUTS = {F.dropout, F.dropout2d}
_STOCHASTIC_DEPTH = (
    "stochastic_depth",
    "torchvision.ops.stochastic_depth",
)  # by name: importing it takes long
_CATS = {torch.cat, torch.concat}
_MEANS = {torch.mean, "mean"}
_FUNCTIONAL_MAX_POOLS = {F.max_pool2d, torch.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}


def opaque(reason: str) -> Operation:
    return Operation("opaque", reason=reason)


def describe(node: fx.Node, module: nn.Module | None = None) -> str:
    """The function, the method or the class of the module that a node calls."""
    if isinstance(module, nn.MultiheadAttention):
        return "MultiheadAttention in one piece (see bench.networks.separate_attention)"
    if module is not None:
        return type(module).__name__
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))


def is_cut(module: nn.Module) -> bool:
    """Whether a module has something of its channels, so that it fits one number of them alone."""
    return isinstance(module, (*NORMS, HeadProducts)) or any(True for _ in module.parameters())


def altered(module: nn.Module) -> str:
    """What makes a call of a module other than its class and its parameters say; empty where there is nothing. Hooks
    come first: those that compute a weight (an old weight norm, pruning of torch) leave it behind as well."""
    if module._forward_pre_hooks or module._forward_hooks:
        return "with hooks"
    if not vars(module).keys().isdisjoint(("forward", "_conv_forward")):
        return "with a forward of its own"
    tensors = (getattr(module, name, None) for name in ("weight", "bias"))
    computed = any(isinstance(each, Tensor) and not isinstance(each, nn.Parameter) for each in tensors)
    return "whose weights are no parameters" if computed else ""


def is_padded(module: nn.Conv2d) -> bool:
    """Whether zeros surround the image. Other padding modes repeat what is there, so that a constant stays
    constant."""
    if module.padding_mode != "zeros" or module.padding == "valid":
        return False
    if module.padding == "same":
        return any(size != 1 for size in module.kernel_size)
    return any(int(side) != 0 for side in module.padding)


def in_place(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether the node overwrites its first input."""
    if module is not None:
        return bool(getattr(module, "inplace", False))
    name = describe(node)
    return (
        node.target in IN_PLACE
        or bool(node.kwargs.get("inplace", False))
        or (name.endswith("_") and not name.endswith("__"))
    )


def may_share(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether what a node gives may lie in the memory of its first input: it overwrites that, or is a view of it."""
    if module is not None:
        return in_place(node, module) or type(module) in IDENTITIES or is_move(node, module)
    made = ADDITIONS | PRODUCTS | QUOTIENTS | _MAPS | _CATS | _MEANS | _FUNCTIONAL_MAX_POOLS
    return node.op.startswith("call") and (in_place(node, module) or node.target not in made)


def classify(
    node: fx.Node, module: nn.Module | None, inputs: Sequence[Given], shape: Sequence[int]
) -> Operation:
    """shape: of the tensor that comes out. Moves apart, see `moves`."""
    if not inputs:
        return opaque(describe(node))
    if module is not None:
        how = altered(module)
        name = type(module).__name__
        return opaque(f"{name} {how}") if how else _classify_module(node, module, inputs, shape)
    return _classify_function(node, inputs, shape)


def _evaluator(node: fx.Node, function: Callable[..., Any]) -> Evaluate:
    nodes = list(node.all_input_nodes)

    def evaluate(values: Sequence[Tensor]) -> Tensor:
        # Clones, because the operation may work in place.
        given = dict(zip(nodes, (value.clone() for value in values), strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: given[n])
        result = function(*args, **kwargs)
        assert isinstance(result, Tensor)
        return result

    return evaluate


def _on(given: Given, axis: int) -> bool:
    """Whether the channels of a tensor are on this axis, or may be taken to be."""
    return len(given.shape) > axis and given.axis in (axis, None)


def _classify_module(
    node: fx.Node, module: nn.Module, inputs: Sequence[Given], shape: Sequence[int]
) -> Operation:
    kind, given = layer_class(module), inputs[0]
    name, dims = kind.__name__, len(given.shape)
    if isinstance(module, HeadProducts) and len(inputs) == 3:
        fits = all(len(each.shape) == 3 and _on(each, 2) for each in inputs)
        return (
            Operation("attention", 2, (2, 2, 2)) if fits else opaque(f"{name} along other than the last axis")
        )
    if len(inputs) != 1:
        return opaque(f"{name} with {len(inputs)} inputs")
    same = 1 if given.axis is None else given.axis
    if kind in IDENTITIES:
        return Operation("map", same, (same,), identity=True, evaluate=_evaluator(node, module))
    if kind in ACTIVATIONS and not isinstance(module, nn.PReLU):
        return Operation("map", same, (same,), evaluate=_evaluator(node, module))
    if isinstance(module, Shift):
        return _shift(module, given)
    if kind is nn.Linear:
        last = dims - 1
        if last < 1 or not _on(given, last):
            return opaque(f"Linear on {dims} dimensions, the last of which are not its channels")
        return Operation("dense", last, (last,))
    if kind in UNIFORM_POOLS and len(shape) == 4 and _on(given, 1):
        return Operation("pool", 1, (1,))
    if kind not in ALONG_ONE:
        return opaque(name)
    if not _on(given, 1):
        return opaque(f"{name} along other than its channels")
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and kind in (nn.Conv2d, nn.ConvTranspose2d):
        return _convolution(module, dims)
    if kind in NORMS and isinstance(module, NORMS):
        if not module.track_running_stats or module.running_mean is None:
            return opaque(f"{name} with statistics of the batch")
        return Operation("norm", 1, (1,))
    if isinstance(module, nn.PReLU) and kind is nn.PReLU:
        # With the slopes as they are when asked: a plan may mask them. Values are in double precision.
        prelu = module
        return Operation(
            "map", 1, (1,), evaluate=_evaluator(node, lambda values: F.prelu(values, prelu.weight.double()))
        )
    if isinstance(module, nn.AvgPool2d) and kind is nn.AvgPool2d:
        border = module.padding not in (0, (0, 0)) and module.count_include_pad
        return Operation("pool", 1, (1,), uniform=not border and module.divisor_override is None)
    return opaque(name)


def _convolution(module: nn.Conv2d | nn.ConvTranspose2d, dims: int) -> Operation:
    name = type(module).__name__
    if dims != 4:
        return opaque(f"{name} on {dims} dimensions")
    if isinstance(module, nn.Conv2d):
        single = module.groups == module.in_channels == module.out_channels and module.groups > 1
        return Operation("depthwise" if single else "dense", 1, (1,))
    if module.groups > 1:
        return opaque(f"{name} with groups")
    # A site promises that row i of a producer's weight belongs to unit i, and here it is a column.
    return Operation("dense", 1, (1,), reason=f"outputs of {name}")


def _shift(module: Shift, given: Given) -> Operation:
    axis = len(given.shape) + module.axis
    if not _on(given, axis):
        return opaque("Shift along other than its channels")

    def evaluate(values: Sequence[Tensor]) -> Tensor:
        return values[0] + module.bias

    return Operation("map", axis, (axis,), evaluate=evaluate)


def _classify_function(node: fx.Node, inputs: Sequence[Given], shape: Sequence[int]) -> Operation:
    target, name = node.target, describe(node)
    function: Callable[..., Any] = _method(str(target)) if isinstance(target, str) else target
    if target in _CATS:
        return _concatenation(node, inputs, shape, name)
    if target in ADDITIONS or target in PRODUCTS:
        return _elementwise(node, inputs, shape, name, function)
    if len(inputs) != 1:
        return opaque(name)
    given = inputs[0]
    same = 1 if given.axis is None else given.axis
    if target in QUOTIENTS:
        if len(node.args) == 2 and isinstance(node.args[1], int | float) and not node.kwargs:
            return Operation("map", same, (same,), product=True, evaluate=_evaluator(node, function))
        return opaque(name)
    if target in _MAPS:
        return Operation("map", same, (same,), evaluate=_evaluator(node, function))
    if target in COPIES:  # not as the call has it, which may name a layout of four dimensions
        return Operation("map", same, (same,), identity=True, evaluate=lambda values: values[0].clone())
    if target in _DROPOUTS or (name, getattr(target, "__module__", "")) == _STOCHASTIC_DEPTH:
        at = 3 if name == _STOCHASTIC_DEPTH[0] else 2
        training = node.kwargs.get("training", node.args[at] if len(node.args) > at else True)
        if training is False:
            return Operation("map", same, (same,), identity=True, evaluate=lambda values: values[0].clone())
        return opaque(f"{name} that is always on")
    if target in _MEANS:
        return _mean(node, given, name)
    if not _on(given, 1):
        return opaque(name)
    if target in _FUNCTIONAL_MAX_POOLS:
        return Operation("pool", 1, (1,))
    if target is F.avg_pool2d:
        words = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor")
        stated = dict(zip(words, node.args, strict=False)) | node.kwargs
        border = stated.get("padding", 0) not in (0, (0, 0), [0, 0])
        plain = not border and len(node.args) < 7 and "divisor_override" not in node.kwargs
        return Operation("pool", 1, (1,), uniform=plain)
    return opaque(name)


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _mean(node: fx.Node, given: Given, name: str) -> Operation:
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
    keeps = node.kwargs.get("keepdim", node.args[2] if len(node.args) > 2 else False)
    listed = [dims] if isinstance(dims, int) else dims
    if not isinstance(listed, list | tuple) or not all(isinstance(d, int) for d in listed):
        return opaque(name)
    axis = 1 if given.axis is None else given.axis
    over = [int(d) % len(given.shape) for d in listed]
    if axis in over or 0 in over:
        return opaque(name)
    gone = 0 if keeps else sum(d < axis for d in over)
    return Operation("pool", axis - gone, (axis,))


def _concatenation(node: fx.Node, inputs: Sequence[Given], shape: Sequence[int], name: str) -> Operation:
    dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
    parts = node.args[0] if node.args else None
    plain = isinstance(parts, list | tuple) and len(parts) == len(inputs)
    if not plain or not isinstance(dim, int) or not all(_on(given, dim % len(shape)) for given in inputs):
        return opaque(name)
    axis = dim % len(shape)
    return Operation("cat", axis, (axis,) * len(inputs)) if axis else opaque(name)


def _elementwise(
    node: fx.Node, inputs: Sequence[Given], shape: Sequence[int], name: str, function: Callable[..., Any]
) -> Operation:
    """A sum or product of tensors whose channels meet when the last axes are laid upon each other."""
    known = [len(given.shape) - given.axis for given in inputs if given.axis is not None]
    behind = known[0] if known else len(shape) - 1
    axis = len(shape) - behind
    fits = axis >= 1 or len(inputs) == 1
    for given in inputs:
        at = len(given.shape) - behind
        fits = fits and at >= 0 and given.axis in (at, None) and given.shape[at] == shape[axis]
    operands = all(isinstance(a, fx.Node | int | float) for a in node.args)
    if not fits or not operands or node.kwargs or len(shape) < 2:
        return opaque(name)
    takes = tuple(len(given.shape) - behind for given in inputs)
    return Operation("map", axis, takes, product=node.target in PRODUCTS, evaluate=_evaluator(node, function))
