"""Channel spaces over torch.fx: which channel of which tensor is the same unit.

Every channel (dim 1) of every tensor of the traced network carries the number of a unit. A linear layer or
convolution opens new units; element-wise operations, normalisation, pooling and depthwise convolutions keep
them; a flatten repeats them; a concatenation strings them together; an addition unites them. A unit is
removed from all its tensors or from none. Units of the input, of the output and of operations the analysis
does not know are pinned.
"""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from bench.compaction import operations
from bench.compaction.operations import Operation
from bench.errors import BadInput


@dataclass(eq=False)
class Step:
    """One node that makes a tensor. layer: path of the module it calls, or "". units: (C,) int64, the unit of
    each channel; empty for a tensor without channels. shape: of the tensor for the example. overwritten: a
    later step changes it in place before somebody else reads it."""

    name: str
    operation: Operation
    inputs: tuple[Step, ...]
    shape: tuple[int, ...]
    units: Tensor
    layer: str = ""
    module: nn.Module | None = None
    overwritten: bool = False


@dataclass
class Graph:
    """steps: in the order of execution. pinned: (units,) bool. coupled: (units,) bool, touched by an addition
    or a concatenation. opaque: what pins units, as `where: what`."""

    steps: list[Step]
    pinned: Tensor
    coupled: Tensor
    opaque: tuple[str, ...]
    readers: dict[Step, list[Step]] = field(default_factory=dict)

    def producers(self) -> list[Step]:
        """Linear layers and convolutions, in the order of execution."""
        return [step for step in self.steps if step.operation.kind in ("dense", "depthwise")]

    def step_of(self, layer: str) -> Step | None:
        """The only step that calls the module at this path, if there is one."""
        found = [step for step in self.steps if step.layer == layer]
        return found[0] if len(found) == 1 else None


class _Units:
    """Union-find over unit numbers."""

    def __init__(self) -> None:
        self.parent: list[int] = []

    def new(self, count: int) -> list[int]:
        start = len(self.parent)
        self.parent.extend(range(start, start + count))
        return list(range(start, start + count))

    def find(self, unit: int) -> int:
        while self.parent[unit] != unit:
            self.parent[unit] = self.parent[self.parent[unit]]
            unit = self.parent[unit]
        return unit

    def unite(self, first: Iterable[int], second: Iterable[int]) -> None:
        for one, other in zip(first, second, strict=True):
            a, b = self.find(one), self.find(other)
            self.parent[max(a, b)] = min(a, b)


class _Recorder(fx.Interpreter):
    """Runs the traced network once and notes the shape of every tensor."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.holds_tensors: set[fx.Node] = set()

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
        elif isinstance(result, tuple | list) and any(isinstance(part, Tensor) for part in result):
            self.holds_tensors.add(n)
        return result


def plain_copy(network: nn.Module, dtype: torch.dtype | None = None) -> nn.Module:
    """A deep copy on the CPU in eval mode, which the analysis may trace and run."""
    twin = copy.deepcopy(network).cpu().eval()
    return twin if dtype is None else twin.to(dtype)


def fitting(network: nn.Module, example: Tensor) -> Tensor:
    """The example on the CPU, in the precision of the network."""
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), example.dtype)
    return example.detach().cpu().to(dtype)


class _Tracer(fx.Tracer):
    """Our own layer is a leaf too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, operations.Zero) or super().is_leaf_module(m, module_qualified_name)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def trace(network: nn.Module) -> fx.Graph:
    """The calls of `network`. Raises BadInput, with the place, where torch.fx cannot follow it."""
    try:
        return _Tracer().trace(network)
    except Exception as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/torch/" not in f.filename]
        frames = [f for f in frames if f.filename != __file__]
        place = f" at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}" if frames else ""
        raise BadInput(
            f"{type(network).__name__} cannot be traced by torch.fx: {_one_line(error)}{place}"
        ) from error


def build_graph(network: nn.Module, example: Tensor) -> Graph:
    """The channel spaces of `network` (in eval mode, on the CPU) for inputs like `example` (N, C, H, W).

    Raises BadInput where the network cannot be traced or does not take the example.
    """
    traced = trace(network)
    recorder = _Recorder(fx.GraphModule(network, traced))
    try:
        with torch.no_grad():
            recorder.run(fitting(network, example))
    except Exception as error:
        shape = tuple(example.shape)
        raise BadInput(
            f"{type(network).__name__} does not take an input of shape {shape}: {_one_line(error)}"
        ) from error
    return _Builder(network, traced, recorder).build()


class _Builder:
    def __init__(self, network: nn.Module, traced: fx.Graph, recorder: _Recorder) -> None:
        self.network, self.traced, self.recorder = network, traced, recorder
        self.units = _Units()
        self.unit_lists: dict[Step, list[int]] = {}
        self.steps: dict[fx.Node, Step] = {}
        self.sources: dict[fx.Node, set[Step]] = {}
        self.pins: list[list[int]] = []
        self.couplings: list[list[int]] = []
        self.opaque: list[str] = []
        self.order = {node: index for index, node in enumerate(traced.nodes)}
        self.shared = self._shared_modules()

    def _shared_modules(self) -> set[int]:
        """Modules with parameters that are called more than once, read apart from their call, or share a
        parameter."""
        calls: Counter[int] = Counter()
        for node in self.traced.nodes:
            if node.op == "call_module":
                calls[id(self.network.get_submodule(str(node.target)))] += 1
            elif node.op == "get_attr" and "." in str(node.target):
                calls[id(self.network.get_submodule(str(node.target).rpartition(".")[0]))] += 2
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
            elif node in self.recorder.shapes:
                self._tensor(node)
            else:
                self._other(node)
        return self._settle()

    def _add(self, node: fx.Node, operation: Operation, inputs: tuple[Step, ...], units: list[int]) -> Step:
        is_module = node.op == "call_module"
        step = Step(
            name=node.name,
            operation=operation,
            inputs=inputs,
            shape=self.recorder.shapes.get(node, ()),
            units=torch.empty(0, dtype=torch.int64),
            layer=str(node.target) if is_module else "",
            module=self.network.get_submodule(str(node.target)) if is_module else None,
        )
        self.steps[node], self.unit_lists[step] = step, units
        return step

    def _output(self, node: fx.Node) -> None:
        inputs = tuple(self.steps[n] for n in node.all_input_nodes if n in self.steps)
        self.pins.extend(self.unit_lists[step] for step in inputs)
        self._add(node, Operation("output"), inputs, [])

    def _other(self, node: fx.Node) -> None:
        """Sizes are followed to where they are used; anything else that is no tensor pins what it was made
        of."""
        sources: set[Step] = set()
        for n in node.all_input_nodes:
            sources |= {self.steps[n]} if n in self.steps else self.sources.get(n, set())
        self.sources[node] = sources
        if node in self.recorder.holds_tensors:
            self._pin(node, operations.opaque(str(getattr(node.target, "__name__", node.target))), sources)

    def _pin(self, node: fx.Node, operation: Operation, sources: Iterable[Step]) -> None:
        self.pins.extend(self.unit_lists[step] for step in sources)
        where = str(node.target) if node.op == "call_module" else node.name
        self.opaque.append(f"{where}: {operation.reason}")

    def _tensor(self, node: fx.Node) -> None:
        shape = self.recorder.shapes[node]
        channels = shape[1] if len(shape) >= 2 else 0
        if node.op in ("placeholder", "get_attr"):
            units = self.units.new(channels)
            self.pins.append(units)
            self._add(node, Operation("input"), (), units)
            return
        inputs = tuple(self.steps[n] for n in node.all_input_nodes if n in self.steps)
        sizes = [n for n in node.all_input_nodes if n not in self.steps]
        operation = self._classify(node, inputs, shape)
        if sizes and operation.kind not in ("flatten", "opaque"):
            operation = operations.opaque(f"{node.name} computes with a size")
        if operation.kind == "opaque":
            sized = set().union(*(self.sources.get(n, set()) for n in sizes))
            self._pin(node, operation, {*inputs, *sized})
            units = self.units.new(channels)
            self.pins.append(units)
        else:
            units = self._units(operation, inputs, channels, shape)
        self._add(node, operation, inputs, units)

    def _classify(self, node: fx.Node, inputs: tuple[Step, ...], shape: tuple[int, ...]) -> Operation:
        module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if any(not self.unit_lists[step] for step in inputs) or not inputs:
            return operations.opaque("a tensor without channels")
        if module is not None and id(module) in self.shared and any(True for _ in module.parameters()):
            return operations.opaque(f"{type(module).__name__} used more than once")
        if operations.in_place(node, module):
            first = node.all_input_nodes[0]
            if any(self.order[user] > self.order[node] for user in first.users):
                self.steps[first].overwritten = True
                return operations.opaque("overwrites a tensor that is read again")
        return operations.classify(node, module, [step.shape for step in inputs], shape)

    def _units(
        self, operation: Operation, inputs: tuple[Step, ...], channels: int, shape: tuple[int, ...]
    ) -> list[int]:
        lists = [self.unit_lists[step] for step in inputs]
        if operation.kind in ("dense", "zero"):
            return self.units.new(channels)
        if operation.kind == "depthwise":
            units = self.units.new(channels)
            self.units.unite(units, lists[0])
            return units
        if operation.kind == "flatten":
            repeat = channels // len(lists[0])
            return [unit for unit in lists[0] for _ in range(repeat)]
        if operation.kind == "cat":
            self.couplings.extend(lists)
            return [unit for units in lists for unit in units]
        for other in lists[1:]:
            self.units.unite(lists[0], other)
            if not operation.product:
                self.couplings.append(other)
        return lists[0]

    def _settle(self) -> Graph:
        count = len(self.units.parent)
        roots = torch.tensor([self.units.find(unit) for unit in range(count)], dtype=torch.int64)
        steps = list(self.steps.values())
        for step in steps:
            step.units = roots[torch.tensor(self.unit_lists[step], dtype=torch.int64)]
        pinned, coupled = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
        for mask, lists in ((pinned, self.pins), (coupled, self.couplings)):
            for units in lists:
                mask[roots[torch.tensor(units, dtype=torch.int64)]] = True
        graph = Graph(steps, pinned, coupled, tuple(dict.fromkeys(self.opaque)))
        for step in steps:
            for source in dict.fromkeys(step.inputs):
                graph.readers.setdefault(source, []).append(step)
        _pin_misfits(graph)
        return graph


def _pin_misfits(graph: Graph) -> None:
    """Pins spaces that are pinned in part, and producers that share some of their units but not all in one
    order."""
    producers = graph.producers()
    changed = True
    while changed:
        before = int(graph.pinned.sum())
        owner: dict[int, Step] = {}
        for step in producers:
            units = step.units.tolist()
            others = {owner[unit] for unit in units if unit in owner}
            misfit = len(set(units)) < len(units) or any(other.units.tolist() != units for other in others)
            if misfit or bool(graph.pinned[step.units].any()):
                for each in (step, *others):
                    graph.pinned[each.units] = True
            for unit in units:
                owner.setdefault(unit, step)
        changed = int(graph.pinned.sum()) != before
