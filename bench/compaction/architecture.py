"""What a compact network looks like, apart from its weights."""

from __future__ import annotations

import copy

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from bench.compaction.graph import build_graph
from bench.compaction.layers import ChangeKind, change_layers
from bench.compaction.rewrite import add_bias, cut
from bench.compaction.runnable import balance, dispensable
from bench.compaction.sites import find_spaces
from bench.errors import nearest


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class LayerChange(_Part):
    """kind: `drop`, `linearise` or `merge`; layers: as in the plan's layer action. Or `shift`: branches that gave the
    same for every input, each by its last layer; one number per channel is left of each."""

    kind: ChangeKind
    layers: tuple[str, ...]


class Architecture(_Part):
    """How a compact network follows from the full one: first the layer changes in their order, then the kept
    units.

    kept: site (of the network with changed layers) → indices of the units that stay, ascending, none where the network
    can do without them in its concatenations; a site not named keeps all. added_biases: layers without bias in the full
    network that have one here. multiple: what the number of units of each site was rounded up to. own_code: whether the
    code of the network, where nothing in it had to change, was proven to run the layers that are cut; None: not known.
    """

    kept: dict[str, list[int]] = {}
    added_biases: tuple[str, ...] = ()
    layer_changes: tuple[LayerChange, ...] = ()
    multiple: int = Field(default=1, ge=1)
    own_code: bool | None = None


def apply_architecture(network: nn.Module, architecture: Architecture, example: Tensor) -> nn.Module:
    """A copy of `network` with the structure of `architecture`; weights are sliced, whatever their values.

    The copy is in the mode and on the device of `network`, which is not changed. Raises ValueError where the
    architecture does not fit the network.
    """
    devices = {parameter.device for parameter in network.parameters()}
    result = copy.deepcopy(network).cpu()
    modes = {name: module.training for name, module in result.named_modules()}
    result.eval()
    for change in architecture.layer_changes:
        result = change_layers(result, change.kind, change.layers, example)
    graph = build_graph(result, example)
    spaces = {space.site.name: space for space in find_spaces(graph)}
    keep = torch.ones(len(graph.pinned), dtype=torch.bool)
    for name, indices in architecture.kept.items():
        if name not in spaces:
            raise ValueError(
                f"the architecture names the site {name!r}, which there is not{nearest(name, spaces)}"
            )
        size = spaces[name].site.size
        if sorted(set(indices)) != indices or not all(0 <= index < size for index in indices):
            raise ValueError(f"the units of site {name!r} must ascend below {size}: {indices[:8]}")
        keep[spaces[name].units] = False
        keep[spaces[name].units[indices]] = True
    if balance(graph, keep):
        raise ValueError("the architecture leaves groups of different size to a grouped convolution")
    gone = dispensable(graph, keep)
    for step in graph.steps:
        if step not in gone and len(step.units) > 0 and not bool(keep[step.units].any()):
            raise ValueError(f"the architecture leaves {step.layer or step.name!r} without a unit")
    result = cut(graph, keep, architecture.own_code)
    for layer in architecture.added_biases:
        module = dict(result.named_modules()).get(layer)
        if not isinstance(module, nn.Linear | nn.Conv2d) or module.bias is not None:
            raise ValueError(f"{layer!r} is no layer that a bias can be added to")
        add_bias(module)
    for name, module in result.named_modules():
        module.training = modes.get(name, network.training)
    return result.to(devices.pop()) if len(devices) == 1 else result
