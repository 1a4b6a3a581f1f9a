"""What one node of a traced network does to channels: the list of operations the analysis knows.

Whatever is not named here is `opaque`: its channels are pinned, never removed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

Kind = Literal[
    "input", "dense", "depthwise", "norm", "map", "pool", "flatten", "cat", "zero", "opaque", "output"
]
Evaluate = Callable[[Sequence[Tensor]], Tensor]


class Zero(nn.Module):
    """What is left of a dropped branch: zeros of the branch's shape (N, channels, *size) for any input (N,
    …)."""

    def __init__(self, channels: int, size: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.size = channels, size

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.channels, *self.size)


@dataclass(frozen=True)
class Operation:
    """kind: see below. uniform: a channel that is constant over space stays constant (only pooling).
    identity: a map that changes nothing in eval mode. evaluate: a map on values of shape (1, C). product: a
    map that is a product. reason: why it is opaque.

    dense: linear layer or convolution, opens a channel space. depthwise, norm, map, pool: channel by channel.
    flatten: every channel becomes as many features as it has pixels. cat: along dim 1. zero: zeros whatever
    the input.
    """

    kind: Kind
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
UNIFORM_POOLS = (nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)

ADDITIONS = {operator.add, operator.iadd, torch.add, "add", "add_"}
PRODUCTS = {operator.mul, operator.imul, torch.mul, "mul", "mul_"}
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
_COPIES = {"contiguous", "clone"}
_DROPOUTS = {F.dropout, F.dropout2d}
_FLATTENS = {torch.flatten, "flatten"}
_RESHAPES = {torch.reshape, "view", "reshape"}
_CATS = {torch.cat, torch.concat}
_MEANS = {torch.mean, "mean"}
_FUNCTIONAL_MAX_POOLS = {F.max_pool2d, torch.max_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d}


def opaque(reason: str) -> Operation:
    return Operation("opaque", reason=reason)


def _describe(node: fx.Node) -> str:
    return str(node.target if node.op == "call_method" else getattr(node.target, "__name__", node.target))


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
    name = _describe(node)
    return (
        node.target in (operator.iadd, operator.imul)
        or bool(node.kwargs.get("inplace", False))
        or (name.endswith("_") and not name.endswith("__"))
    )


def classify(
    node: fx.Node, module: nn.Module | None, inputs: Sequence[Sequence[int]], output: Sequence[int]
) -> Operation:
    """inputs, output: shapes of the tensors that go in and out."""
    if module is not None:
        return _classify_module(node, module, inputs, output)
    return _classify_function(node, inputs, output)


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


def _classify_module(
    node: fx.Node, module: nn.Module, inputs: Sequence[Sequence[int]], output: Sequence[int]
) -> Operation:
    kind, shape = type(module), inputs[0]
    name = kind.__name__
    if len(inputs) != 1:
        return opaque(f"{name} with {len(inputs)} inputs")
    if isinstance(module, Zero):
        return Operation("zero")
    if kind is nn.Linear:
        return Operation("dense") if len(shape) == 2 else opaque(f"Linear on {len(shape)} dimensions")
    if kind is nn.Conv2d and isinstance(module, nn.Conv2d):
        if len(shape) != 4:
            return opaque(f"Conv2d on {len(shape)} dimensions")
        single = module.groups == module.in_channels == module.out_channels and module.groups > 1
        return Operation("depthwise" if single else "dense")
    if kind in NORMS and isinstance(module, NORMS):
        if not module.track_running_stats or module.running_mean is None:
            return opaque(f"{name} with statistics of the batch")
        return Operation("norm") if module.affine else opaque(f"{name} without scale and shift")
    if kind in IDENTITIES:
        return Operation("map", identity=True, evaluate=_evaluator(node, module))
    if kind in ACTIVATIONS:
        return Operation("map", evaluate=_evaluator(node, module))
    if kind in UNIFORM_POOLS and len(output) == 4:
        return Operation("pool")
    if isinstance(module, nn.AvgPool2d) and kind is nn.AvgPool2d:
        border = module.padding not in (0, (0, 0)) and module.count_include_pad
        return Operation("pool", uniform=not border and module.divisor_override is None)
    if kind is nn.ZeroPad2d:
        return Operation("pool", uniform=False)
    if kind is nn.Flatten:
        return _flatten(shape, output, name)
    return opaque(name)


def _flatten(shape: Sequence[int], output: Sequence[int], name: str) -> Operation:
    features = 1
    for size in shape[1:]:
        features *= size
    if len(shape) >= 2 and tuple(output) == (shape[0], features):
        return Operation("flatten")
    return opaque(name)


def _classify_function(node: fx.Node, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> Operation:
    target, name = node.target, _describe(node)
    if not inputs:
        return opaque(name)
    shape = inputs[0]
    function: Callable[..., Any] = _method(str(target)) if isinstance(target, str) else target
    if target in _RESHAPES:
        return _reshape(node, shape, output, name)
    if target in _FLATTENS:
        return _flatten(shape, output, name)
    if target in _CATS:
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        parts = node.args[0]
        plain = isinstance(parts, list | tuple) and len(parts) == len(inputs)
        if plain and isinstance(dim, int) and dim % len(output) == 1:
            return Operation("cat")
        return opaque(name)
    if target in ADDITIONS or target in PRODUCTS:
        same = all(len(s) == len(output) and s[1] == output[1] for s in inputs)
        operands = all(isinstance(a, fx.Node | int | float) for a in node.args)
        if not same or not operands or node.kwargs or len(output) < 2:
            return opaque(name)
        return Operation("map", product=target in PRODUCTS, evaluate=_evaluator(node, function))
    if len(inputs) != 1:
        return opaque(name)
    if target in _MAPS:
        return Operation("map", evaluate=_evaluator(node, function))
    if target in _COPIES:
        return Operation("map", identity=True, evaluate=_evaluator(node, function))
    if target in _DROPOUTS:
        training = node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)
        if training is False:
            return Operation("map", identity=True, evaluate=_evaluator(node, function))
        return opaque(f"{name} that is always on")
    if target in _FUNCTIONAL_MAX_POOLS:
        return Operation("pool")
    if target is F.avg_pool2d:
        words = ("input", "kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor")
        given = dict(zip(words, node.args, strict=False)) | node.kwargs
        border = given.get("padding", 0) not in (0, (0, 0), [0, 0])
        plain = not border and len(node.args) < 7 and "divisor_override" not in node.kwargs
        return Operation("pool", uniform=plain)
    if target in _MEANS:
        dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else None)
        listed = [dims] if isinstance(dims, int) else dims
        if isinstance(listed, list | tuple) and all(
            isinstance(d, int) and d % len(shape) >= 2 for d in listed
        ):
            return Operation("pool")
    return opaque(name)


def _method(name: str) -> Callable[..., Any]:
    return lambda self, *args, **kwargs: getattr(self, name)(*args, **kwargs)


def _reshape(node: fx.Node, shape: Sequence[int], output: Sequence[int], name: str) -> Operation:
    """Flattening, unless the number of features stands in the code as a literal, which fewer channels would
    break."""
    sizes = node.args[1:]
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    if len(sizes) != 2 or node.kwargs:
        return opaque(name)
    if isinstance(sizes[1], int) and sizes[1] != -1:
        return opaque(f"{name} to a literal size of {sizes[1]}")
    return _flatten(shape, output, name)
