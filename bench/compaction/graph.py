"""Channel spaces over torch.fx: which channel of which tensor is the same unit.

Every channel of every tensor of the traced network carries the number of a unit; the channels are on dim 1, or where
a linear layer or a permutation puts them. A linear layer or convolution opens new units; element-wise operations,
normalisation, pooling and depthwise convolutions keep them; moves (flatten, chunk, shuffle, …) take them elsewhere;
a concatenation strings them together; an addition unites them. A unit is removed from all its tensors or from none.
Units of the input, of the output and of operations the analysis does not know are pinned: they are wild, in that
nothing is known of which axis is which.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.compaction import moves, operations
from bench.compaction.operations import Given, Operation
from bench.compaction.steps import Graph, Step, Units, pin_misfits, settled
from bench.compaction.tracing import Record, record, trace

_COUNTS = {"numel", "nelement", "stride", torch.numel}
"""Numbers in which that of the channels cannot be told from others."""
_LAYERS = {
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
    "bilinear",
}
"""Functions that have outputs of their own."""


def build_graph(network: nn.Module, example: Tensor) -> Graph:
    """The channel spaces of `network` (in eval mode, on the CPU) for inputs like `example` (N, C, H, W).

    Raises BadInput where the network cannot be traced or does not take the example.
    """
    traced = trace(network)
    return _Builder(network, traced, record(network, traced, example)).build()


class _Builder:
    def __init__(self, network: nn.Module, traced: fx.Graph, run: Record) -> None:
        self.network, self.traced, self.run = network, traced, run
        self.modules = dict(network.named_modules(remove_duplicate=False))
        self.units = Units()
        self.lists: dict[Step, Tensor] = {}
        self.steps: dict[fx.Node, Step] = {}
        self.order_made: list[Step] = []
        # Nodes whose channels are on several axes, or that are several tensors, and which step they are of. The last
        # says whether a tensor on the way had its channels on several axes.
        self.pending: dict[fx.Node, tuple[Step, moves.Moved, bool]] = {}
        self.sources: dict[fx.Node, set[Step]] = {}
        self.pins: list[Tensor] = []
        self.couplings: list[Tensor] = []
        self.opaque: list[str] = []
        self.order = {node: index for index, node in enumerate(traced.nodes)}
        self.shared = self._shared_modules()
        # Of parameters: how often the code reads them by themselves, or in modules that have them.
        self.reads = self._reads()
        # Wild steps of which nothing has been said yet, and what there is to say if they pin others.
        self.unsaid: dict[Step, str] = {}

    def _reads(self) -> Counter[int]:
        owned = [p for module in self.network.modules() for p in module._parameters.values() if p is not None]
        reads = Counter(id(parameter) for parameter in owned)
        for node in self.traced.nodes:
            if node.op == "get_attr":
                reads[id(self._attribute(str(node.target)))] += 1
        return reads

    def _attribute(self, target: str) -> Any:
        home, _, name = target.rpartition(".")
        return getattr(self.modules[home], name)

    def _shared_modules(self) -> set[int]:
        """Modules with parameters that are called more than once, read apart from their call, or share a
        parameter."""
        calls: Counter[int] = Counter()
        for node in self.traced.nodes:
            if node.op == "call_module":
                calls[id(self.modules[str(node.target)])] += 1
            elif node.op == "get_attr" and "." in str(node.target):
                calls[id(self.modules[str(node.target).rpartition(".")[0]])] += 2
        owners: dict[int, set[int]] = {}
        for module in self.network.modules():
            for parameter in module.parameters(recurse=False):
                owners.setdefault(id(parameter), set()).add(id(module))
        shared = {owner for group in owners.values() if len(group) > 1 for owner in group}
        return shared | {module for module, count in calls.items() if count > 1}

    def build(self) -> Graph:
        for node in self.traced.nodes:
            if node.op == "output":
                self._output(node)
            elif node in self.run.shapes:
                self._tensor(node)
            else:
                self._other(node)
        for node, (source, _, _) in self.pending.items():
            if not node.users and node not in self.steps:  # the call stays in the code
                self._pin(node, operations.opaque("channels on more than one axis, not read"), (source,))
        roots = self.units.roots()
        for step in self.order_made:
            step.units = roots[self.lists[step]]
        pinned, coupled = self._all_pinned(roots), settled(self.couplings, roots)
        opaque = tuple(dict.fromkeys(self.opaque))
        graph = Graph(self.network, self.traced, self.order_made, pinned, coupled, opaque)
        for step in graph.steps:
            for source in dict.fromkeys(step.inputs):
                graph.readers.setdefault(source, []).append(step)
        pin_misfits(graph)
        return graph

    def _all_pinned(self, roots: Tensor) -> Tensor:
        """(units,) bool. What is wild and was not named is, where a layer is pinned by nothing else."""
        pinned = settled(self.pins, roots)
        dense = settled((s.units for s in self.order_made if s.operation.kind == "dense"), roots)
        for step, what in self.unsaid.items():
            more = settled([step.units], roots) & ~pinned
            if bool((more & dense).any()):
                self.opaque.append(what)
            pinned |= more
        return pinned

    def _add(self, node: fx.Node, operation: Operation, inputs: tuple[Step, ...], units: Tensor) -> Step:
        is_module = node.op == "call_module"
        step = Step(
            name=node.name,
            operation=operation,
            inputs=inputs,
            shape=self.run.shapes.get(node, ()),
            units=torch.empty(0, dtype=torch.int64),
            layer=str(node.target) if is_module or operation.kind == "parameter" else "",
            module=self.modules[str(node.target)] if is_module else None,
            node=node,
        )
        self.steps[node], self.lists[step] = step, units
        self.order_made.append(step)
        return step

    def _wild(self, node: fx.Node, operation: Operation, inputs: tuple[Step, ...], unsaid: str = "") -> None:
        """unsaid: what there is to say of it if it pins others."""
        shape = self.run.shapes.get(node, ())
        step = self._add(node, operation, inputs, self.units.new(shape[1] if len(shape) > 1 else 0))
        step.wild = True
        self._pin_wild(step, unsaid)

    def _pin_wild(self, step: Step, unsaid: str) -> None:
        if unsaid:
            self.unsaid[step] = unsaid
        else:
            self.pins.append(self.lists[step])

    def _as_on(self, step: Step, axis: int) -> Step:
        """A wild step, its channels taken to be on another axis."""
        if not step.wild or step.axis == axis:
            return step
        twin = replace(
            step, operation=Operation("opaque", axis), inputs=(step,), layer="", module=None, node=None
        )
        self.lists[twin] = self.units.new(step.shape[axis])
        self._pin_wild(twin, self.unsaid.get(step, ""))
        self.order_made.append(twin)
        return twin

    def _tensors(self, node: fx.Node) -> tuple[Step, ...]:
        """The tensors a node reads. Channels that are on several axes here, or in several tensors that are read as
        one, are given up."""
        for n in node.all_input_nodes:
            if n in self.pending and n not in self.steps:
                source = self.pending[n][0]
                where = (
                    "on more than one axis"
                    if n in self.run.shapes
                    else "in several tensors that are read as one"
                )
                self._pin(n, operations.opaque(f"channels {where}"), (source,))
                self._wild(n, Operation("opaque"), (source,))
        return tuple(self.steps[n] for n in node.all_input_nodes if n in self.steps)

    def _output(self, node: fx.Node) -> None:
        inputs = self._tensors(node)
        self.pins.extend(self.lists[step] for step in inputs)
        self._add(node, Operation("output"), inputs, self.units.new(0))

    def _other(self, node: fx.Node) -> None:
        """Sizes are followed to where they are used, several tensors to where one of them is taken; anything else that
        is no tensor pins what it was made of."""
        if node in self.run.holds_tensors and self._several(node):
            return
        sources: set[Step] = set()
        for n in node.all_input_nodes:
            if n in self.pending and n not in self.steps:
                sources.add(self.pending[n][0])
                if node in self.run.numbers:
                    self._pin(n, operations.opaque("the size of channels on more than one axis"), sources)
            else:
                sources |= {self.steps[n]} if n in self.steps else self.sources.get(n, set())
        self.sources[node] = sources
        if node.target in _COUNTS:
            self._pin(node, operations.opaque(operations.describe(node)), sources)
        if node in self.run.holds_tensors:
            module = self.modules[str(node.target)] if node.op == "call_module" else None
            self._pin(node, operations.opaque(operations.describe(node, module)), sources)

    def _pin(self, node: fx.Node, operation: Operation, sources: Iterable[Step]) -> bool:
        """Names the node where it pins anything that was not, a layer's own outputs among it; whether it did."""
        sources = tuple(sources)
        self.pins.extend(self.lists[step] for step in sources if not step.wild)
        named = self._is_layer(node) or not sources or not all(step.wild for step in sources)
        if named:
            self.opaque.append(self._what(node, operation))
        return named

    def _what(self, node: fx.Node, operation: Operation) -> str:
        return f"{node.target if node.op == 'call_module' else node.name}: {operation.reason}"

    def _is_layer(self, node: fx.Node) -> bool:
        """Whether it has outputs of its own."""
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            return any(parameter.dim() > 1 for parameter in module.parameters())
        return operations.describe(node) in _LAYERS

    def _tensor(self, node: fx.Node) -> None:
        if node.op == "get_attr":
            self._parameter(node)
            return
        if node.op == "placeholder":
            self._wild(node, Operation("input"), ())
            return
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if self._moved(node, module):
            return
        inputs = self._tensors(node)
        sizes = [n for n in node.all_input_nodes if n not in self.steps]
        operation = self._classify(node, module, inputs)
        if sizes and operation.kind != "opaque":
            operation = operations.opaque(f"{node.name} computes with a size")
        if operation.kind == "opaque":
            sized = set().union(*(self.sources.get(n, set()) for n in sizes))
            named = self._pin(node, operation, dict.fromkeys((*inputs, *sized)))
            before = next((self.unsaid[step] for step in inputs if step in self.unsaid), None)
            self._wild(node, operation, inputs, "" if named else before or self._what(node, operation))
            return
        inputs = tuple(self._as_on(step, axis) for step, axis in zip(inputs, operation.takes, strict=True))
        step = self._add(node, operation, inputs, self._units(operation, inputs, self.run.shapes[node]))
        step.wild = bool(inputs) and operation.kind != "dense" and all(s.wild for s in inputs)
        if operation.reason:
            self._pin(node, operation, (step,))

    def _parameter(self, node: fx.Node) -> None:
        """One number per channel (a layer scale) is cut with the channels; any other tensor is what it is."""
        shape, target = self.run.shapes[node], str(node.target)
        long = [d for d, size in enumerate(shape) if size > 1]
        home = self.modules[target.rpartition(".")[0]]
        tensor = self._attribute(target)
        if not isinstance(tensor, nn.Parameter):
            reason = "a tensor that is no parameter"
        elif self.reads[id(tensor)] > 2:  # where it is, and here
            reason = "a parameter that is used more than once"
        elif len(long) != 1:
            reason = "a parameter that is not one number per channel"
        elif not any(True for _ in home.children()):
            reason = f"a parameter of {type(home).__name__}, a module of its own"
        else:
            self._add(node, Operation("parameter", long[0]), (), self.units.new(shape[long[0]]))
            return
        self._wild(node, Operation("input"), (), f"{target}: {reason}")

    def _classify(self, node: fx.Node, module: nn.Module | None, inputs: tuple[Step, ...]) -> Operation:
        if any(len(self.lists[step]) == 0 for step in inputs) or not inputs:
            return operations.opaque(f"{operations.describe(node, module)} of a tensor without channels")
        if module is not None and id(module) in self.shared and operations.is_cut(module):
            return operations.opaque(f"{type(module).__name__} used more than once")
        if operations.in_place(node, module) and self._is_read_again(node):
            return operations.opaque("overwrites a tensor that is read again")
        given = [Given(step.shape, None if step.wild else step.axis) for step in inputs]
        return operations.classify(node, module, given, self.run.shapes[node])

    def _is_read_again(self, node: fx.Node) -> bool:
        """Whether the tensor that a node overwrites, or one that shares its memory, is read after it."""
        base = node.all_input_nodes[0]
        while (viewed := self._viewed(base)) is not None:
            base = viewed
        again, waiting = False, [base]
        while waiting:
            tensor = waiting.pop()
            if any(self.order[user] > self.order[node] for user in tensor.users):
                again = True
                if tensor in self.steps:
                    self.steps[tensor].overwritten = True
            earlier = [user for user in tensor.users if self.order[user] < self.order[node]]
            waiting += [user for user in earlier if user.target != "clone" and self._viewed(user) is tensor]
        return again

    def _viewed(self, node: fx.Node) -> fx.Node | None:
        """The tensor that the one of a node is a view of, as far as it may be one."""
        step = self.steps.get(node)
        is_view = node in self.pending or (
            step is not None and (step.operation.identity or step.operation.kind in ("flatten", "move"))
        )
        return node.all_input_nodes[0] if is_view and node.all_input_nodes else None

    def _units(self, operation: Operation, inputs: tuple[Step, ...], shape: tuple[int, ...]) -> Tensor:
        lists = [self.lists[step] for step in inputs]
        if operation.kind == "dense":
            return self.units.new(shape[operation.axis])
        if operation.kind == "depthwise":
            units = self.units.new(shape[operation.axis])
            self.units.unite(units, lists[0])
            return units
        if operation.kind == "attention":
            queries, keys, made = lists
            self.units.unite(queries, keys)
            return made
        if operation.kind == "cat":
            self.couplings.extend(lists)
            return torch.cat(lists)
        for other in lists[1:]:
            self.units.unite(lists[0], other)
            if not operation.product:
                self.couplings.append(other)
        return lists[0]

    def _origin(self, node: fx.Node) -> tuple[Step, moves.Moved, bool] | None:
        """Of a node that moves elements: the step they are of, the tensors it takes them from, and whether those have
        their channels on several axes."""
        if not node.all_input_nodes:
            return None
        first, *others = node.all_input_nodes
        if any(n not in self.run.numbers for n in others):
            return None
        if first in self.pending:
            return self.pending[first]
        if node.target in moves.COPIES:
            return None
        step = self.steps.get(first)
        if step is None or len(self.lists[step]) == 0:
            return None
        return step, (torch.empty(0) if step.wild else moves.numbered(step.shape)), False

    def _several(self, node: fx.Node) -> bool:
        """Whether a node that gives several tensors does so by moving elements."""
        origin = self._origin(node) if moves.is_move(node, None) else None
        if origin is None:
            return False
        source, given, scattered = origin
        moved = given if source.wild else moves.move(node, None, given, self.run.numbers)
        self.pending[node] = source, moved, scattered
        return True

    def _moved(self, node: fx.Node, module: nn.Module | None) -> bool:
        """Whether a node moves elements; if so, it has become a step, or waits for what becomes of it."""
        origin = self._origin(node) if moves.is_move(node, module) else None
        if origin is None:
            return False
        source, given, scattered = origin
        if source.wild:
            self._wild(node, Operation("opaque"), (source,), self.unsaid.get(source, ""))
            return True
        moved = moves.move(node, module, given, self.run.numbers)
        assert isinstance(moved, Tensor)
        places = moves.places(moved, source.shape, source.axis)
        rewrite = (
            None
            if places is None
            else moves.rewriting(node, module, places, source.shape, source.axis, scattered)
        )
        if places is None or rewrite is None:
            self.pending[node] = source, moved, True
            return True
        units = self.lists[source]
        index = places.index
        if int(index.min()) >= 0:
            units = units[index]
        else:
            # Not those of the source: the `Select` that is put in place does not need the same channels on both sides.
            units = self.units.new(len(index))
            self.couplings.append(units)
        kind = "flatten" if moves.is_flatten(moved, places, len(self.lists[source])) else "move"
        operation = Operation(kind, places.axis, (source.axis,), uniform=places.uniform)  # type: ignore[arg-type]
        step = self._add(node, operation, (source,), units)
        step.index, step.rewrite = places.index, rewrite
        return True
