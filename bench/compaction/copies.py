"""Copies of networks. `copy.deepcopy` takes a network apart value by value, the dozen empty dictionaries of hooks that
every module has among them, and a compaction needs several copies."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from bench.errors import BadInput

_SHARED = frozenset({type(None), bool, int, float, str, bytes, torch.dtype, torch.device})
_COMPILED = "_compiled_call_impl"
"""Where `compile()` of a module keeps what is called in its place: the original's, in a copy too."""
_CONTAINERS = frozenset({dict, OrderedDict, set, list})


def plain_copy(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A deep copy on the CPU in eval mode, with floating-point tensors of this precision (default: as they are). Raises
    BadInput where the network cannot be copied."""

    def convert(tensor: Tensor) -> Tensor:
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        return tensor.to("cpu", wanted, copy=True)

    return _copy_with(network, convert)


def copy_in_precision_of(network: nn.Module, original: nn.Module, default: torch.dtype) -> nn.Module:
    """The same, each floating-point tensor as precise as the one of that name in `original`; new ones as `default`."""
    precision = {name: tensor.dtype for name, tensor in _tensors(original)}
    wanted = {id(tensor): precision.get(name, default) for name, tensor in _tensors(network)}

    def convert(tensor: Tensor) -> Tensor:
        dtype = wanted[id(tensor)] if tensor.is_floating_point() else tensor.dtype
        return tensor.to("cpu", dtype, copy=True)

    return _copy_with(network, convert)


def _tensors(network: nn.Module) -> list[tuple[str, Tensor]]:
    return [*network.named_parameters(), *network.named_buffers()]


def local_copy(network: nn.Module) -> nn.Module:
    """The same, each tensor on the device where it is."""
    return _copy_with(network, lambda tensor: tensor.clone())


def sharing_copy(network: nn.Module) -> nn.Module:
    """The same, but parameters that are on the CPU are those of `network`: to trace, run and hang hooks on, not to
    change. Buffers are not: a run may write to them."""

    def convert(tensor: Tensor) -> Tensor:
        return tensor.cpu() if isinstance(tensor, nn.Parameter) else tensor.to("cpu", copy=True)

    return _copy_with(network, convert)


@torch.no_grad()
def _copy_with(network: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """A deep copy whose tensors are what `convert` makes of each: on the way, since they are most of the work."""
    kind = type(network).__name__
    memo: dict[int, Any] = {}
    for name, tensor in _tensors(network):
        if is_lazy(tensor) or tensor.is_meta:
            raise BadInput(f"{kind} cannot be copied: {name} has no values yet")
        twin = convert(tensor).detach()
        is_parameter = isinstance(tensor, nn.Parameter)
        memo[id(tensor)] = nn.Parameter(twin, tensor.requires_grad) if is_parameter else twin
    try:
        twin_of_network: nn.Module = _twin(network, memo)
    except Exception as error:
        raise BadInput(f"{kind} cannot be copied: {' '.join(str(error).split())[:300]}") from error
    return twin_of_network.eval()


def _twin(value: Any, memo: dict[int, Any]) -> Any:
    """As `copy.deepcopy(value, memo)`, which does whatever is not as usual."""
    kind = type(value)
    if kind in _SHARED:
        return value
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, nn.Module) and _copied_by_its_attributes(kind):
        twin = memo[id(value)] = object.__new__(kind)
        own = twin.__dict__
        for name, attribute in value.__dict__.items():  # most are empty, or flags
            kind = type(attribute)
            if name == _COMPILED:
                continue
            if kind in _SHARED:
                own[name] = attribute
            elif kind in _CONTAINERS and not attribute:
                own[name] = kind()
            else:
                own[name] = _twin(attribute, memo)
        return twin
    if kind in _CONTAINERS and not value:
        return kind()
    if kind is dict:
        twin = memo[id(value)] = {}
        for key, entry in value.items():
            twin[_twin(key, memo)] = _twin(entry, memo)
        return twin
    if kind is list:
        twin = memo[id(value)] = []
        twin.extend(_twin(entry, memo) for entry in value)
        return twin
    if kind is tuple:
        return (
            value if all(type(entry) in _SHARED for entry in value) else tuple(_twin(e, memo) for e in value)
        )
    if isinstance(value, Tensor) and not value.is_leaf:  # what a run has left behind
        twin = memo[id(value)] = value.detach().clone()
        return twin
    twin = copy.deepcopy(value, memo)
    if isinstance(value, fx.GraphModule):  # which leaves them behind
        take_hooks(twin, value)
    return twin


def take_hooks(twin: nn.Module, network: nn.Module) -> None:
    """Hangs the hooks on the calls of `network` itself on `twin` as well."""
    for name, hooks in vars(network).items():
        if name.startswith(("_forward_hooks", "_forward_pre_hooks")):
            vars(twin)[name] = hooks.copy()


def _copied_by_its_attributes(kind: type[nn.Module]) -> bool:
    """Whether a deep copy of such a module is no more than one of its `__dict__`. Of torch's own layers only the
    recurrent ones set their state for more than what an older version has not stored."""
    # The first as it is now: torch.compile replaces that of `nn.Module`.
    usual = kind.__setstate__ is nn.Module.__setstate__
    of_torch = usual or getattr(kind.__setstate__, "__module__", "").startswith("torch.nn.modules.")
    own = ("__new__", "__deepcopy__", "__getstate__", "__reduce__", "__reduce_ex__", "__slots__")
    as_usual = all(getattr(kind, name, None) is getattr(nn.Module, name, None) for name in own)
    return of_torch and as_usual and not issubclass(kind, nn.RNNBase)
