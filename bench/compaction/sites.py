"""Sites: the channel spaces of a network whose units may be switched off and removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.compaction.copies import sharing_copy
from bench.compaction.graph import build_graph
from bench.compaction.operations import NORMS
from bench.compaction.own_layers import Shift
from bench.compaction.scaling import is_scale_free, norm_after, outlet
from bench.compaction.steps import Graph, Step
from bench.errors import nearest
from methods.base import Site, SparsityPlan


@dataclass(frozen=True)
class Space:
    """A site and the units of the graph that it is made of, (size,) int64."""

    site: Site
    units: Tensor


def find_sites(network: nn.Module, example: Tensor) -> list[Site]:
    """The sites of any fx-traceable network, in the order of execution of their first producers.

    example: a batch of inputs (N, C, H, W). The network is not changed. Units of the input, of the output and
    of operations the analysis does not know make no site. Raises BadInput where the network cannot be traced.
    """
    return [space.site for space in find_spaces(build_graph(sharing_copy(network), example))]


def what_pins(network: nn.Module, example: Tensor) -> tuple[str, ...]:
    """The operations that the analysis does not know, whose channels therefore all stay, as `where: operation`."""
    return build_graph(sharing_copy(network), example).opaque


def find_spaces(graph: Graph) -> list[Space]:
    groups: dict[tuple[int, ...], list[Step]] = {}
    owned = {tuple(step.units.tolist()) for step in graph.producers() if step.operation.kind == "dense"}
    for step in graph.producers():
        units = tuple(step.units.tolist())
        if units in owned and not bool(graph.pinned[step.units].any()):
            groups.setdefault(units, []).append(step)
    singly, readers = _parameters_of_one(graph), _readers(graph, list(groups.values()))
    return [
        _space(graph, producers, reading, singly)
        for producers, reading in zip(groups.values(), readers, strict=True)
    ]


def _readers(graph: Graph, spaces: list[list[Step]]) -> list[list[Step]]:
    """Of each space, given by its producers: the layers that read it and are none of these."""
    space_of = torch.full((len(graph.pinned),), -1)
    for number, producers in enumerate(spaces):
        space_of[producers[0].units] = number
    found: list[list[Step]] = [[] for _ in spaces]
    for step in graph.producers():
        for number in space_of[step.inputs[0].units].unique().tolist():
            if number >= 0 and step not in spaces[number]:
                found[number].append(step)
    return found


def without_site(graph: Graph, spaces: list[Space]) -> Tensor:
    """(units,) bool: those that belong to no site; they stay, as an architecture does not tell them."""
    alone = torch.ones(len(graph.pinned), dtype=torch.bool)
    for space in spaces:
        alone[space.units] = False
    return alone


def _space(graph: Graph, producers: list[Step], readers: list[Step], singly: Tensor) -> Space:
    units = producers[0].units
    member = torch.zeros(len(graph.pinned), dtype=torch.bool)
    member[units] = True
    norms: list[str] = []
    ends: list[Step] = []
    for producer in producers:
        norm = norm_after(graph, producer)
        norms += [norm.layer] if norm else []
        ends.append(norm or producer)
    parameters, macs = singly[units].sum().item(), 0.0
    for step in (*producers, *readers):
        made, read = layer_cost(step, member, step in producers)
        parameters, macs = parameters + made, macs + read
    site = Site(
        name=producers[0].layer,
        size=len(units),
        kind="stream" if bool(graph.coupled[units].any()) else "inner",
        producers=tuple(step.layer for step in producers),
        norms=tuple(norms),
        ends=tuple(end.layer for end in ends),
        readers=tuple(step.layer for step in readers),
        parameters_per_unit=parameters / len(units),
        macs_per_unit=macs / len(units),
        outlets=tuple(outlet(graph, end).layer for end in ends),
        scale_free=is_scale_free(graph, ends, producers),
        tokens=any(producer.axis != 1 for producer in producers),
        in_order=all(_reads_in_order(reader, units) for reader in readers),
    )
    return Space(site, units)


def _reads_in_order(reader: Step, units: Tensor) -> bool:
    """Whether its inputs are these units one after the other, each as so many neighbours."""
    inputs = reader.inputs[0].units
    return torch.equal(inputs, units.repeat_interleave(len(inputs) // len(units)))


def _parameters_of_one(graph: Graph) -> Tensor:
    """(units,) float64: what a unit has in normalisations, in activations that learn, in scales and shifts."""
    found = torch.zeros(len(graph.pinned), dtype=torch.float64)
    for step in graph.steps:
        module = step.module
        if step.operation.kind == "parameter":
            each = 1
        elif step.operation.kind == "norm" or isinstance(module, nn.PReLU | Shift):
            assert module is not None
            each = sum(p.numel() for p in module.parameters()) // len(
                step.units
            )  # a PReLU may have one for all
        else:
            continue
        found.index_add_(0, step.units, torch.full((len(step.units),), float(each), dtype=torch.float64))
    return found


def layer_cost(step: Step, member: Tensor, produces: bool) -> tuple[float, float]:
    """Parameters and MACs of one image that the units of a space cost together in a layer that makes or reads them."""
    module = step.module
    assert isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
    share = member[step.units if produces else step.inputs[0].units].double().mean().item()
    weights = module.weight.numel() * share
    # A transposed convolution multiplies at the pixels it reads.
    shape = step.inputs[0].shape if isinstance(module, nn.ConvTranspose2d) else step.shape
    places = 1
    for axis, size in enumerate(shape):
        places *= size if axis not in (0, step.axis) else 1
    biases = len(step.units) if produces and module.bias is not None else 0
    return weights + biases, weights * places


def check_plan(network: nn.Module, sites: Sequence[Site], plan: SparsityPlan) -> None:
    """Raises ValueError where the plan does not fit the network."""
    sizes = {site.name: site.size for site in sites}
    for name, kept in plan.kept.items():
        if name not in sizes:
            raise ValueError(f"the plan names the site {name!r}, which there is not{nearest(name, sizes)}")
        _check_mask(f"the mask of site {name!r}", kept, (sizes[name],))
    parameters = dict(network.named_parameters())
    for name, mask in plan.weight_masks.items():
        if name not in parameters:
            raise ValueError(
                f"the plan masks the parameter {name!r}, which there is not{nearest(name, parameters)}"
            )
        _check_mask(f"the mask of parameter {name!r}", mask, tuple(parameters[name].shape))


def _check_mask(what: str, mask: Tensor, shape: tuple[int, ...]) -> None:
    if mask.dtype != torch.bool or tuple(mask.shape) != shape:
        raise ValueError(f"{what} is {mask.dtype} {tuple(mask.shape)}; torch.bool {shape} is needed")


@torch.no_grad()
def switch_off(network: nn.Module, sites: list[Site], plan: SparsityPlan) -> None:
    """Sets the units that are off to zero in the weights of `network` (rows of the producers, their biases,
    scale and shift of the normalisations) and applies the weight masks. Off means: zero after the affine
    chain."""
    parameters = dict(network.named_parameters())
    for name, mask in plan.weight_masks.items():
        parameters[name].mul_(mask.to(parameters[name]))
    for site in sites:
        if site.name not in plan.kept:
            continue
        off = (~plan.kept[site.name].cpu()).nonzero().flatten()
        for layer in (*site.producers, *site.norms):
            module = network.get_submodule(layer)
            for name in ("weight", "bias"):  # a class of the user's own may have others, that do not compute
                if getattr(module, name, None) is not None:
                    module.get_parameter(name).index_fill_(0, off, 0.0)
            if isinstance(module, NORMS) and not module.affine and module.running_mean is not None:
                module.running_mean[off] = 0.0  # what comes in is zero, and now what goes out is
