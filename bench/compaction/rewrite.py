"""Cutting a network down to the units that are kept. Modules are changed in place and stay of their class."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bench.compaction.calls import as_called, fit_calls, still_calls
from bench.compaction.liveness import Values
from bench.compaction.own_layers import Shift
from bench.compaction.runnable import dispensable
from bench.compaction.steps import Graph, Step
from bench.compaction.weights import answer
from bench.networks import HeadProducts


@torch.no_grad()
def constant_shifts(graph: Graph, keep: Tensor, known: Values) -> dict[str, Tensor]:
    """What removed constant units contribute to the biases of their readers: layer → (outputs that stay,) float64.

    Before `cut`. Needs that every removed unit is zero, unread, or folds (see liveness).
    """
    found = {}
    for step in graph.producers():
        module = step.module
        assert isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
        if isinstance(module, nn.ConvTranspose2d):
            continue  # folds nothing: what goes in front of it is zero, or unread
        source = step.inputs[0]
        gone = ~keep[source.units] & known[source].isfinite() & (known[source] != 0)
        if step.operation.kind == "depthwise" or not bool(gone.any()) or not bool(keep[step.units].any()):
            continue
        shift = answer(step, torch.where(gone, known[source], 0.0))
        if bool((shift != 0).any()):
            found[step.layer] = shift[keep[step.units]]
    return found


@torch.no_grad()
def add_shifts(network: nn.Module, shifts: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Adds them to the biases of the network that is cut; the layers that got a bias by it. A layer that went, out of
    a concatenation, needs none."""
    left, added = dict(network.named_modules(remove_duplicate=False)), []
    for layer, shift in shifts.items():
        if layer not in left:
            continue
        module = network.get_submodule(layer)
        assert isinstance(module, nn.Linear | nn.Conv2d)
        if module.bias is None:
            add_bias(module)
            added.append(layer)
        assert module.bias is not None
        module.bias += shift.to(module.bias)
    return tuple(added)


def add_bias(module: nn.Linear | nn.Conv2d) -> None:
    """A bias of zeros, (outputs,)."""
    module.bias = nn.Parameter(module.weight.detach().new_zeros(module.weight.shape[0]))


@torch.no_grad()
def cut(graph: Graph, keep: Tensor, own_code: bool | None = None) -> nn.Module:
    """The graph's network with every parameter and buffer sliced to the kept units; the graph is stale afterwards.

    The same modules, changed in place. The network itself is the same too, unless its code would not fit fewer
    channels (a chunk, a shuffle, the size of a view, a concatenation of which a whole operand goes): then it is a
    `GraphModule` with other calls in their place.

    own_code: whether its code, where nothing in it has to change, does the same with the layers that are cut (it may
    ask one for its width). None: not known; then it is traced again and compared.
    """
    gone = dispensable(graph, keep)
    for step in graph.steps:
        module, kind = step.module, step.operation.kind
        if step in gone:
            continue
        if kind == "parameter":
            _cut_parameter(graph.network, step, keep)
        if kind in ("input", "opaque", "output") or module is None:
            continue
        out = keep[step.units]
        if isinstance(module, nn.Linear):
            _cut_linear(module, keep[step.inputs[0].units], out)
        elif isinstance(module, nn.Conv2d):
            _cut_convolution(step, module, keep[step.inputs[0].units], out)
        elif isinstance(module, nn.ConvTranspose2d):
            _replace(module, "weight", module.weight[keep[step.inputs[0].units]])
            module.in_channels = len(module.weight)
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for name, parameter in list(module.named_parameters()):
                _replace(module, name, parameter[out])
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean, module.running_var = module.running_mean[out], module.running_var[out]
            module.num_features = int(out.sum())
        elif isinstance(module, nn.PReLU) and module.num_parameters > 1:
            _replace(module, "weight", module.weight[out])
            module.num_parameters = int(out.sum())
        elif isinstance(module, HeadProducts):
            module.heads = int(out.view(module.heads, -1).any(1).sum())
        elif isinstance(module, Shift):
            _replace(module, "bias", module.bias[out])
    changed = fit_calls(graph, keep, gone)
    if own_code is None and not changed:
        own_code = all(bool(keep[step.units].all()) for step in graph.steps) or still_calls(graph)
    return as_called(graph) if changed or not own_code else graph.network


def _cut_parameter(network: nn.Module, step: Step, keep: Tensor) -> None:
    home, _, name = step.layer.rpartition(".")
    kept = keep[step.units].nonzero().flatten()
    module = network.get_submodule(home)
    _replace(module, name, getattr(module, name).index_select(step.axis, kept))


def _replace(module: nn.Module, name: str, data: Tensor) -> None:
    """data: not a view of the old tensor (indexing by a mask makes none)."""
    old = getattr(module, name)
    setattr(module, name, nn.Parameter(data, requires_grad=old.requires_grad))


def _cut_bias(module: nn.Linear | nn.Conv2d, out: Tensor) -> None:
    if module.bias is not None:
        _replace(module, "bias", module.bias[out])


def _taken(weight: Tensor, out: Tensor, inputs: Tensor) -> Tensor:
    """Rows and columns by mask. Several times as fast as by the masks themselves, and no view in any case."""
    rows, columns = out.nonzero().flatten(), inputs.nonzero().flatten()
    return weight.index_select(0, rows).index_select(1, columns)


def _cut_linear(module: nn.Linear, inputs: Tensor, out: Tensor) -> None:
    if not (bool(inputs.all()) and bool(out.all())):
        _replace(module, "weight", _taken(module.weight, out, inputs))
        _cut_bias(module, out)
    module.in_features, module.out_features = int(inputs.sum()), int(out.sum())


def _cut_convolution(step: Step, module: nn.Conv2d, inputs: Tensor, out: Tensor) -> None:
    if step.operation.kind == "depthwise":
        weight, groups = module.weight[out], int(out.sum())
    elif module.groups == 1:
        weight, groups = _taken(module.weight, out, inputs), 1
    else:
        blocks = []
        sides = zip(
            module.weight.chunk(module.groups),
            inputs.chunk(module.groups),
            out.chunk(module.groups),
            strict=True,
        )
        for block, columns, rows in sides:
            if bool(rows.any()):
                blocks.append(_taken(block, rows, columns))
        weight, groups = torch.cat(blocks), len(blocks)
    _replace(module, "weight", weight)
    _cut_bias(module, out)
    module.groups, module.in_channels, module.out_channels = groups, int(inputs.sum()), int(out.sum())
