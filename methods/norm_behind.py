"""Which normalisation follows a layer, for layers that make no site that a method is offered."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

_NOTHING = (nn.Identity, nn.Dropout, nn.Dropout2d)


class _Tracer(fx.Tracer):
    """Whatever has no module inside is one call."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not any(True for _ in m.children())


def norms_behind(network: nn.Module) -> dict[str, str]:
    """Path of a layer → path of the batch normalisation that alone reads what the layer gives. Both are called once.
    Empty where torch.fx cannot follow the network."""
    try:
        nodes = _Tracer().trace(network).nodes
    except Exception:  # of any kind, as it runs the network's own code
        return {}
    modules = dict(network.named_modules(remove_duplicate=False))
    called = {node: modules[str(node.target)] for node in nodes if node.op == "call_module"}
    calls = Counter(id(module) for module in called.values())
    found = {}
    for node in called:
        reader = _only_reader(node)
        while reader is not None and isinstance(called.get(reader), _NOTHING):
            reader = _only_reader(reader)
        if reader is None or not isinstance(norm := called.get(reader), _BatchNorm):
            continue
        if calls[id(called[node])] == calls[id(norm)] == 1:
            found[str(node.target)] = str(reader.target)
    return found


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None
