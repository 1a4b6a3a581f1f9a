"""The proof: a masked reference that shares nothing with the rewriting, and the compact network measured
against it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bench.compaction.copies import local_copy, plain_copy, sharing_copy
from bench.compaction.graph import build_graph
from bench.compaction.layers import find_activation, find_branch
from bench.compaction.sites import check_plan, find_spaces
from bench.compaction.steps import Graph
from methods.base import Site, SparsityPlan

FLOAT64_BOUND = 1e-9
FLOAT32_BOUND = 1e-4
"""Of a network in half the precision, the distance of its numbers if that is larger: what is folded or multiplied is
rounded to them."""
TIE = 1e-5
"""Two logits closer than this, relative to the largest of the image, are a tie: float32 does not order
them."""

_RANDOM_IMAGES = 8
_RANDOM_SCALES = (1.0, 5.0)
_CHUNK = 256


@dataclass(frozen=True)
class Certificate:
    """Compact against masked reference. difference_*: max |Δ| over max |output| of the reference.
    removed_units: of all sites. kept_constant_units: constant units that stay because zero padding surrounds
    what they feed. reason: why it did not pass."""

    passed: bool
    difference_float64: float
    difference_float32: float
    removed_units: int
    kept_constant_units: int
    reason: str = ""


class _MaskUnits:
    """A forward hook that multiplies the units of the output by a mask of zeros and ones: on dim 1, or on the last
    of a linear layer's."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.mask = self.mask.to(output)
        behind = 0 if isinstance(module, nn.Linear) else output.ndim - 2
        return output * self.mask.view(-1, *[1] * behind)


class _Erase:
    """A forward hook that multiplies the output by zero."""

    def __call__(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        return output * 0.0


class _PassThrough:
    """A forward hook that gives the input back."""

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return inputs[0]


def masked_reference(network: nn.Module, plan: SparsityPlan, example: Tensor) -> nn.Module:
    """A deep copy of `network` in eval mode, of full size, that computes what the plan means.

    Units that are off are multiplied by zero at the ends of their site, masked weights are zero, dropped
    branches are multiplied by zero, linearised activations give their input back. Raises ValueError where the
    plan does not fit.
    """
    graph = build_graph(sharing_copy(network), example)
    sites = [space.site for space in find_spaces(graph)]
    return reference_of(local_copy(network), plan, graph, sites)


def reference_of(twin: nn.Module, plan: SparsityPlan, graph: Graph, sites: Sequence[Site]) -> nn.Module:
    """The same, made of a copy of the network, which may share the network's tensors. graph, sites: of another copy."""
    check_plan(twin, sites, plan)
    reference = twin
    masks = {twin.get_parameter(name): mask for name, mask in plan.weight_masks.items()}
    for module in reference.modules() if masks else ():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight in masks:
                setattr(module, name, nn.Parameter(weight.detach() * masks[weight].to(weight)))
    for site in sites:
        if site.name in plan.kept:
            for end in site.ends:
                mask = plan.kept[site.name].detach().clone()
                reference.get_submodule(end).register_forward_hook(_MaskUnits(mask))
    for action in plan.layer_actions:
        if action.kind == "linearise":
            for layer in action.layers:
                activation: Any = reference.get_submodule(find_activation(graph, layer).layer)
                activation.inplace = False
                activation.register_forward_hook(_PassThrough())
        elif action.kind == "drop":
            last = find_branch(graph, action.layers).layer
            reference.get_submodule(last).register_forward_hook(_Erase())
        elif action.kind == "shift":
            raise ValueError("a shift is what compaction leaves of a branch: no plan can ask for it")
    return reference


@torch.no_grad()
def difference(reference: nn.Module, compact: nn.Module, batches: Iterable[Tensor]) -> float:
    """max |reference − compact| over max |reference|, over all batches; the largest, where the networks give several
    tensors. Infinite where an output is not finite."""
    found: dict[int, tuple[float, float]] = {}
    for batch in batches:
        # Each gets images of its own: it may write to them.
        expected, got = _tensors(reference(batch.clone())), _tensors(compact(batch.clone()))
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (expected, got)]
        if shapes[0] != shapes[1]:
            given, wanted = (", ".join(map(str, each)) for each in shapes[::-1])
            raise ValueError(f"the compact network gives {given}, the reference {wanted}")
        for at, (one, other) in enumerate(zip(expected, got, strict=True)):
            if not bool(one.isfinite().all() & other.isfinite().all()):
                return float("inf")
            largest, scale = found.get(at, (0.0, 0.0))
            found[at] = (
                max(largest, (one - other).abs().max().item()),
                max(scale, one.abs().max().item()),
            )
    return max((apart / scale if scale > 0 else apart for apart, scale in found.values()), default=0.0)


def _tensors(output: Any) -> list[Tensor]:
    """All that a network gives, from tuples and dictionaries too. Raises ValueError where there is anything else."""
    leaves = [leaf for leaf in tree_leaves(output) if leaf is not None]
    strange = {type(leaf).__name__ for leaf in leaves if not isinstance(leaf, Tensor)}
    if strange or not leaves:
        raise ValueError(
            f"only tensors can be compared, not what gives {', '.join(sorted(strange)) or 'none'}"
        )
    return leaves


def certify(
    reference: nn.Module,
    rewritten: nn.Module,
    delivered: nn.Module,
    example: Tensor,
    real: Tensor | None,
    removed_units: int,
    kept_constant_units: int,
) -> Certificate:
    """Compares in float64, which proves the rewriting, and in float32, which proves what is delivered.

    reference, delivered: on the CPU, in the precision of the network. rewritten: what is delivered, as precise as it
    was made. Random inputs of the example's shape are always compared, `real` (N, C, H, W) beside them.
    """
    generator = torch.Generator().manual_seed(0)
    shape = (_RANDOM_IMAGES, *example.shape[1:])
    batches = [
        scale * torch.randn(shape, generator=generator, dtype=torch.float64) for scale in _RANDOM_SCALES
    ]
    if real is not None:
        batches += list(real.detach().cpu().double().split(_CHUNK))
    try:
        exact = difference(
            plain_copy(reference, torch.float64), plain_copy(rewritten, torch.float64), batches
        )
        singles = [batch.float() for batch in batches]
        single = difference(
            plain_copy(reference, torch.float32), plain_copy(delivered, torch.float32), singles
        )
    except Exception as error:
        who = (
            "compact network does not run"
            if _runs(reference, batches[0])
            else "network does not run in float64"
        )
        reason = f"the {who}: {' '.join(str(error).split())[:300]}"
        return Certificate(False, float("inf"), float("inf"), removed_units, kept_constant_units, reason)
    dtypes = [p.dtype for p in delivered.parameters() if p.is_floating_point()]
    rounding = max((torch.finfo(dtype).eps for dtype in dtypes), default=0.0)
    faults = [
        f"{precision} differs by {value:.2g} of the output scale (bound {bound:g})"
        for precision, value, bound in (
            ("float64", exact, FLOAT64_BOUND),
            ("float32", single, max(FLOAT32_BOUND, rounding)),
        )
        if not value <= bound
    ]
    return Certificate(not faults, exact, single, removed_units, kept_constant_units, "; ".join(faults))


@torch.no_grad()
def _runs(network: nn.Module, images: Tensor) -> bool:
    """Whether it does, in float64."""
    try:
        plain_copy(network, torch.float64)(images.clone())
    except Exception:
        return False
    return True


@torch.inference_mode()
def top1_changes(reference: nn.Module, compact: nn.Module, batches: Iterable[Tensor]) -> tuple[int, int]:
    """Images whose top-1 class differs between two networks in eval mode, ties apart, and images seen."""
    changes = images = 0
    for batch in batches:
        expected, got = reference(batch.clone()), compact(batch.clone())
        first = expected.gather(1, expected.argmax(1, keepdim=True))
        second = expected.gather(1, got.argmax(1, keepdim=True))
        tie = TIE * expected.abs().amax(1, keepdim=True)
        changes += int((first - second > tie).sum())
        images += len(batch)
    return changes, images
