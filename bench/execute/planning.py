"""A method's plan, made so that nothing before it tells on it, nor it on what comes after."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor, nn

from bench.errors import nearest
from bench.execute.attachments import attachments
from bench.execute.subject import Subject
from bench.training.seeds import stream
from methods.base import SparsityPlan

TOLERANCE = 1e-5
"""Of an expected activity."""


def plan_of(trained: Subject, strength: float, seed: int) -> SparsityPlan:
    """The plan at `strength`. What it draws is of the seed alone, whether others were made before it or the training
    was taken up. Raises RuntimeError where it changes the network, whose values are put back for the plans after it;
    ValueError where the activity that it expects cannot be."""
    method, network = trained.method, trained.network
    draws = stream(seed, "method", "plan")
    method.context.generator.manual_seed(draws)
    # Those of the process, too, for a method that draws from them.
    torch.manual_seed(draws)
    np.random.seed(draws % 2**32)  # noqa: NPY002 (it is the one that a method would draw from)
    random.seed(draws)
    before = _values(network)
    plan = method.plan(strength)
    if changed := _put_back(network, before):
        raise RuntimeError(f"plan of {method.name} changes {', '.join(changed[:3])}: the network has to stay")
    if left := attachments(network) - trained.plain:
        what = ", ".join(sorted(left)[:3])
        raise RuntimeError(f"plan of {method.name} leaves {what}: the network has to stay")
    for site, units in plan.expected_activity.items():
        _check_activity(trained, site, units)
    return plan


def _check_activity(trained: Subject, site: str, units: float) -> None:
    where = f"plan of {trained.method.name}, expected_activity"
    sizes = {s.name: s.size for s in trained.sites}
    if site not in sizes:
        raise ValueError(f"{where}: no site {site!r}{nearest(site, sizes)}")
    # A mean over many images is not exact; NaN is in no range.
    if not -TOLERANCE <= units <= sizes[site] * (1 + TOLERANCE):
        raise ValueError(f"{where}: {units:g} units of {site}, which has {sizes[site]}")


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


def _values(network: nn.Module) -> dict[str, Tensor]:
    """Of all parameters and buffers, copied."""
    return {name: tensor.detach().clone() for name, tensor in _tensors(network).items()}


@torch.no_grad()
def _put_back(network: nn.Module, values: dict[str, Tensor]) -> list[str]:
    """Give what differs from `values` its value again; the names of that, and of what is gone."""
    now = _tensors(network)
    changed = [name for name in values if name not in now]
    for name, tensor in now.items():
        if name in values and not _same(tensor, values[name]):
            tensor.data = values[name]
            changed.append(name)
    return changed


def _same(one: Tensor, other: Tensor) -> bool:
    if one.shape != other.shape or one.dtype != other.dtype or one.device != other.device:
        return False
    return torch.equal(one, other) or bool(torch.isclose(one, other, 0.0, 0.0, equal_nan=True).all())
