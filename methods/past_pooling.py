"""Where |∂y/∂p| can be had from smaller maps: behind the pooling that a pre-activation goes to.

Let q = f(p) with a Jacobian J that has no negative entry, and at most one entry for each place of p: a ReLU, a
mean, a pooling whose windows do not overlap. Then |Jᵀg| = Jᵀ|g| for every g, and the magnitudes of several
gradients may be added up at q before Jᵀ is applied, once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node


def past_pooling(output: Tensor, edges: Sequence[GradientEdge]) -> list[GradientEdge]:
    """For each edge the one behind the last pooling up to which |Jᵀg| = Jᵀ|g| holds on every way from the edge to
    `output`; the edge itself where there is none."""
    consumers = _consumers(output)
    return [_end_of_route(edge, consumers) for edge in edges]


def _consumers(output: Tensor) -> dict[tuple[Node, int], list[Node]]:
    """Edge → the nodes of the graph of `output` that take the value there."""
    found: dict[tuple[Node, int], list[Node]] = defaultdict(list)
    seen: set[Node] = set()
    waiting = [output.grad_fn] if output.grad_fn is not None else []
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        for before, at in node.next_functions:
            if before is not None:
                found[before, at].append(node)
                waiting.append(before)
    return found


def _end_of_route(edge: GradientEdge, consumers: dict[tuple[Node, int], list[Node]]) -> GradientEdge:
    end, here = edge, (edge.node, edge.output_nr)
    while len(takers := consumers.get(here, [])) == 1:
        (node,) = takers
        pools = _is_mean(node) or _is_pooling_without_overlap(node)
        if not pools and node.name() != "ReluBackward0":
            break
        here = (node, 0)
        if pools:
            end = GradientEdge(*here)
    return end


def _is_mean(node: Node) -> bool:
    return node.name() in ("MeanBackward0", "MeanBackward1")


def _is_pooling_without_overlap(node: Any) -> bool:
    if node.name() not in ("MaxPool2DWithIndicesBackward0", "AvgPool2DBackward0"):
        return False
    dilated = any(step > 1 for step in getattr(node, "_saved_dilation", ()))
    kernel = node._saved_kernel_size
    stride = node._saved_stride or kernel
    return not dilated and all(step >= size for step, size in zip(stride, kernel, strict=True))
