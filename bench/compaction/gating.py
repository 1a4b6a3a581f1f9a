"""Gates that depend on the image (`Method.input_gates`) in a network: cut with it, and put in place."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import Tensor, fx, nn

from bench.compaction.copies import local_copy
from bench.compaction.tracing import trace
from bench.errors import nearest
from methods.base import Site
from methods.input_gate import InputGate

Gates = Mapping[str, InputGate]
"""By the name of their site."""


def cut_gates(gates: Gates, kept: Mapping[str, list[int]]) -> dict[str, InputGate]:
    """The gates of the units that are left; a site not named keeps all."""
    return {name: gate.units(kept[name]) if name in kept else gate for name, gate in gates.items()}


def with_gates(network: nn.Module, sites: Sequence[Site], gates: Gates) -> fx.GraphModule:
    """A copy of `network` in eval mode that multiplies the units of each site by its gate's multipliers, at all
    its ends; the gate sees the values at the first. The gates are modules of the copy and move with it.

    Raises ValueError where the gates do not fit the sites, BadInput where the network cannot be traced.
    """
    check_gates(gates, sites)
    gated = traced_copy(network)
    nodes = {str(node.target): node for node in gated.graph.nodes if node.op == "call_module"}
    for site in sites:
        if site.name in gates:
            put_gate(gated, [nodes[end] for end in site.ends], gates[site.name])
    return finished(gated)


def check_gates(gates: Gates, sites: Sequence[Site]) -> None:
    """Raises ValueError where a gate has no site, one of tokens, or another number of units than
    its site."""
    sizes = {site.name: site.size for site in sites}
    for site in sites:
        if site.name in gates and site.tokens:
            raise ValueError(f"site {site.name!r} is of tokens: no gate can depend on the image there")
    for name, gate in gates.items():
        if name not in sizes:
            raise ValueError(
                f"there is a gate for the site {name!r}, which there is not{nearest(name, sizes)}"
            )
        if gate.size != sizes[name]:
            raise ValueError(f"the gate of site {name!r} has {gate.size} units, the site has {sizes[name]}")


def traced_copy(network: nn.Module) -> fx.GraphModule:
    """A deep copy in eval mode, as a graph that can be edited. Hooks on its layers stay."""
    twin = local_copy(network)
    return fx.GraphModule(twin, trace(twin))


def put_gate(gated: fx.GraphModule, ends: Sequence[fx.Node], gate: InputGate) -> None:
    """Multipliers from the values at the first of `ends`, the calls of a site's ends, onto all of them."""
    path = add_module(gated, "input_gates", copy.deepcopy(gate))
    with gated.graph.inserting_after(ends[0]):
        multipliers = gated.graph.call_module(path, (ends[0],))
    for end in ends:
        with gated.graph.inserting_after(multipliers if end is ends[0] else end):
            product = gated.graph.call_function(times, (end, multipliers))
        replace(end, product, but_for=(multipliers, product))


def add_module(gated: fx.GraphModule, group: str, module: nn.Module) -> str:
    """Adds a module under the name `group`.N; its path."""
    taken = dict(gated.named_children()).get(group)
    path = f"{group}.{0 if taken is None else len(list(taken.children()))}"
    gated.add_submodule(path, module)
    return path


def replace(old: fx.Node, new: fx.Node, but_for: Sequence[fx.Node]) -> None:
    """Lets every reader of `old` read `new`, but for some."""
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user not in but_for)


def finished(gated: fx.GraphModule) -> fx.GraphModule:
    """The edited graph, checked and made runnable."""
    gated.graph.lint()
    gated.recompile()
    return gated


def times(values: Tensor, multipliers: Tensor) -> Tensor:
    """values (N, size, …) times multipliers (N, size)."""
    return values * multipliers.reshape(*multipliers.shape, *[1] * (values.dim() - 2))
