"""Behind which pooling the magnitudes may be added up, and that the sums are the same there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from methods.neuron_sensitivity import full
from methods.past_pooling import past_pooling

CLASSES = 3


class Spatial(nn.Module):
    """The mean over the places of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


class Twice(nn.Module):
    """Two poolings side by side: two ways from the map to the logits."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.max_pool2d(x, 2) - nn.functional.avg_pool2d(x, 2)


ENDS: dict[str, tuple[list[nn.Module], str]] = {
    "max pooling behind a ReLU": ([nn.ReLU(), nn.MaxPool2d(2)], "MaxPool2DWithIndicesBackward0"),
    "max pooling before a ReLU": ([nn.MaxPool2d(2), nn.ReLU()], "MaxPool2DWithIndicesBackward0"),
    "windows with gaps between them": ([nn.MaxPool2d(2, stride=3)], "MaxPool2DWithIndicesBackward0"),
    "average pooling": ([nn.ReLU(), nn.AvgPool2d(2)], "AvgPool2DBackward0"),
    "two poolings": ([nn.MaxPool2d(2), nn.ReLU(), nn.AvgPool2d(2)], "AvgPool2DBackward0"),
    "a mean": ([nn.ReLU(), Spatial()], "MeanBackward1"),
    "no pooling": ([nn.ReLU()], "ConvolutionBackward0"),
    "windows that overlap": ([nn.ReLU(), nn.MaxPool2d(3, stride=2)], "ConvolutionBackward0"),
    "averages that overlap": ([nn.AvgPool2d(3, stride=1)], "ConvolutionBackward0"),
    "windows with holes": ([nn.MaxPool2d(2, stride=2, dilation=2)], "ConvolutionBackward0"),
    "a slope that may be negative": ([nn.Tanh(), nn.GELU(), nn.MaxPool2d(2)], "ConvolutionBackward0"),
    "two ways": ([nn.ReLU(), Twice()], "ConvolutionBackward0"),
}


def watched(between: list[nn.Module], images: Tensor) -> tuple[Tensor, Tensor, GradientEdge]:
    """Logits, a pre-activation that `between` takes, and its edge."""
    torch.manual_seed(0)
    before = nn.Conv2d(1, 4, 3, padding=1).double()
    pre_activation = before(images)
    features = nn.Sequential(*between)(pre_activation).flatten(1)
    return (
        nn.Linear(features.shape[1], CLASSES).double()(features),
        pre_activation,
        get_gradient_edge(pre_activation),
    )


def images() -> Tensor:
    return torch.randn(6, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("case", ENDS)
def test_the_route_ends_where_magnitudes_stop_passing_through(case: str) -> None:
    between, expected = ENDS[case]
    logits, _, edge = watched(between, images())
    (end,) = past_pooling(logits, [edge])
    if expected == "ConvolutionBackward0":
        assert end is edge
        assert end.node.name() == "ConvolutionBackward0"
    else:
        assert end.node.name() == expected


@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("case", ENDS)
def test_the_sensitivity_is_that_of_one_derivative_at_a_time(case: str, at_once: int) -> None:
    logits, pre_activation, edge = watched(ENDS[case][0], images())
    (found,) = full(logits, [edge], at_once)
    assert found is not None
    rows = [
        torch.autograd.grad(logits[:, k].sum(), pre_activation, retain_graph=True)[0] for k in range(CLASSES)
    ]
    expected = torch.stack(rows).abs().mean(dim=(0, 1, 3, 4))
    assert torch.allclose(found, expected, rtol=1e-12)


def test_a_pre_activation_behind_another_keeps_its_own() -> None:
    """Two pre-activations with one end: neither sum disturbs the other."""
    torch.manual_seed(0)
    p = nn.Conv2d(1, 4, 3, padding=1).double()(images())
    q = p.relu()
    logits = nn.Linear(64, CLASSES).double()(nn.functional.max_pool2d(q, 2).flatten(1))
    edges = [get_gradient_edge(p), get_gradient_edge(q)]
    together = full(logits, edges)
    alone = [full(logits, [edge])[0] for edge in edges]
    for one, other in zip(together, alone, strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_what_the_logits_do_not_depend_on_stays() -> None:
    logits, _, _ = watched([nn.ReLU()], images())
    _, _, apart = watched([nn.ReLU(), nn.MaxPool2d(2)], images())
    assert past_pooling(logits, [apart]) == [apart]
    assert full(logits, [apart]) == [None]
