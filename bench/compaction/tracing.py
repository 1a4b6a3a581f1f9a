"""A network as torch.fx sees it, and one run of it on an example."""

from __future__ import annotations

import inspect
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.compaction.operations import IN_PLACE, altered
from bench.compaction.own_layers import OWN, layer_class
from bench.errors import BadInput

_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
"""What the paths of torch's own files begin with."""


def fitting(network: nn.Module, example: Tensor) -> Tensor:
    """The example on the CPU, in the precision of the network."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), example.dtype)
    return example.detach().cpu().to(dtype)


class _Value(fx.Proxy):
    """A value whose `+=` is one: torch.fx takes it for a sum beside the tensor, which others may read again."""


for _operator in IN_PLACE:

    def _in_place(self: fx.Proxy, other: Any, _operator: Any = _operator) -> Any:
        return self.tracer.create_proxy("call_function", _operator, (self, other), {})

    setattr(_Value, f"__{_operator.__name__}__", _in_place)


class _Tracer(fx.Tracer):
    """Our own layers are leaves too, and those that are but derived from layers of torch. A network takes one tensor:
    what else it could be told has the default."""

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        function, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        stated = inspect.signature(inspect.unwrap(root_fn)).parameters
        for at, given in enumerate(args[2:], 2):  # behind the network and its input
            name = str(given.node.target)
            if name in stated and stated[name].default is not inspect.Parameter.empty:
                args[at] = stated[name].default
                self.graph.erase_node(given.node)
        return function, args

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_own = isinstance(m, OWN) or layer_class(m) is not type(m)
        return is_own or super().is_leaf_module(m, module_qualified_name)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def trace(network: nn.Module) -> fx.Graph:
    """The calls of `network`. Raises BadInput, with the place, where torch.fx cannot follow it."""
    try:
        return _Tracer().trace(network)
    except Exception as error:
        files = (_TORCH, __file__)
        frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(files)]
        place = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
        raise BadInput(
            f"{type(network).__name__} cannot be traced by torch.fx: {_one_line(error)}{place}"
        ) from error


def has_constants(traced: fx.Graph) -> bool:
    """Whether the code computes with tensors that depend on no input, so that their values stand in the graph, in the
    precision in which it was traced."""
    return any(n.op == "get_attr" and str(n.target).startswith("_tensor_constant") for n in traced.nodes)


class Record(fx.Interpreter):
    """One run of a traced network, for its shapes: convolutions, which would take most of the time, give zeros.

    shapes: of every tensor. holds_tensors: nodes that give several tensors. numbers: what every other node gives
    (sizes, mostly). last: the node that has run last."""

    def __init__(self, network: nn.Module, traced: fx.Graph) -> None:
        super().__init__(network, graph=traced)
        self.extra_traceback = False  # `record` tells the place
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.holds_tensors: set[fx.Node] = set()
        self.numbers: dict[fx.Node, Any] = {}
        self.last = "the input"

    def run_node(self, n: fx.Node) -> Any:
        self.last = str(n.target) if n.op == "call_module" else n.name
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        elif isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result):
            self.holds_tensors.add(n)
        else:
            self.numbers[n] = result
        return result

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not kwargs and len(args) == 1 and _is_plain_convolution(module, args[0]):
            return _zeros_of(module, args[0])
        return super().call_module(target, args, kwargs)


def _is_plain_convolution(module: nn.Module, images: Tensor) -> bool:
    """Whether a call of the module is a convolution of one group that takes these images, and nothing besides."""
    return (
        type(module) is nn.Conv2d
        and module.groups == 1
        and module.padding_mode == "zeros"
        and not altered(module)
        and images.dim() == 4
        and images.shape[1] == module.in_channels
    )


def _zeros_of(module: nn.Conv2d, images: Tensor) -> Tensor:
    """As large as what the convolution gives: its height and width are those of one channel by one channel."""
    kernel = module.weight[:1, :1]
    one = nn.functional.conv2d(images[:, :1], kernel, None, module.stride, module.padding, module.dilation)
    return one.new_zeros(len(images), module.out_channels, *one.shape[2:])


def record(network: nn.Module, traced: fx.Graph, example: Tensor) -> Record:
    """Raises BadInput where the network does not take the example."""
    if not isinstance(example, Tensor):
        raise BadInput(f"an example is one tensor, a batch of inputs, not a {type(example).__name__}")
    run = Record(network, traced)
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            run.run(fitting(network, example).clone())  # it may be written to
    except Exception as error:
        shape = tuple(example.shape)
        raise BadInput(
            f"{type(network).__name__} does not take an input of shape {shape}: at {run.last}: {_one_line(error)}"
        ) from error
    return run
