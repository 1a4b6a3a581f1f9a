"""The certificate fails where the compact network is wrong; the reference stands on its own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from small_networks import Residual, images, off, plan_of, randomise
from torch import Tensor, nn

from bench.compaction import compact, masked_reference, removal, top1_changes
from bench.compaction.verify import difference

EXAMPLE = images(2, 3, 8, 8)
PLAN = plan_of(stem=off(6, 1), conv1=off(5, 0, 3))


def test_reference_by_hand() -> None:
    network = randomise(Residual()).eval()
    reference = masked_reference(network, PLAN, EXAMPLE)
    stream, inner = PLAN.kept["stem"].view(1, -1, 1, 1), PLAN.kept["conv1"].view(1, -1, 1, 1)
    layer = network.get_submodule
    x = torch.relu(layer("bn0")(layer("stem")(EXAMPLE)) * stream)
    y = torch.relu(layer("bn1")(layer("conv1")(x)) * inner)
    y = torch.relu(layer("bn2")(layer("conv2")(y)) * stream + x)
    torch.testing.assert_close(reference(EXAMPLE), layer("fc")(y.mean((2, 3))))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_reference_survives_copies_and_precision(copied: Callable[[nn.Module], nn.Module]) -> None:
    reference = masked_reference(randomise(Residual()), PLAN, EXAMPLE)
    expected = reference(EXAMPLE)
    twin = copied(reference)
    assert torch.equal(twin(EXAMPLE), expected)
    torch.testing.assert_close(twin.double()(EXAMPLE.double()).float(), expected)
    torch.testing.assert_close(twin.float()(EXAMPLE), expected)


def mutants() -> list[tuple[str, float]]:
    names = [name for name, _ in randomise(Residual()).named_parameters()]
    return [(name, size) for name in names for size in (1e-3, 1e-7)]


@pytest.mark.parametrize(("name", "size"), mutants())
def test_certificate_fails_when_any_parameter_moves(
    name: str, size: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compact network is spoilt after rewriting; even an error that float32 would not see is found."""

    def spoiling(graph: object, keep: Tensor, own_code: bool) -> nn.Module:
        network = real_cut(graph, keep, own_code)  # type: ignore[arg-type]
        modules = {step.layer: step.module for step in graph.steps if step.module is not None}  # type: ignore[attr-defined]
        layer, _, word = name.rpartition(".")
        with torch.no_grad():
            getattr(modules[layer], word).view(-1)[0] += size * 10
        return network

    real_cut = removal.cut
    monkeypatch.setattr(removal, "cut", spoiling)
    certificate = compact(randomise(Residual()), PLAN, EXAMPLE).certificate
    assert not certificate.passed
    assert "float64 differs" in certificate.reason
    assert certificate.difference_float64 > 1e-9


def test_certificate_fails_when_a_live_unit_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(*given: object) -> Tensor:
        keep = real(*given)  # type: ignore[arg-type]
        keep[real_spaces(given[0])[0].units[0]] = False  # type: ignore[arg-type]
        return keep

    real, real_spaces = removal.needed_units, removal.find_spaces
    monkeypatch.setattr(removal, "needed_units", lambda graph, known, fold_padded=False: greedy(graph, known))
    certificate = compact(randomise(Residual()), PLAN, EXAMPLE).certificate
    assert not certificate.passed
    assert certificate.difference_float64 > 1e-4
    assert certificate.difference_float32 > 1e-4


def test_certificate_fails_when_constants_are_not_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 2)
    )
    monkeypatch.setattr(removal, "constant_shifts", lambda *given: {})
    assert not compact(randomise(network), plan_of(**{"0": off(4, 1)}), EXAMPLE).certificate.passed


def test_certificate_fails_when_the_compact_network_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def halved(graph: object, keep: Tensor, own_code: bool) -> nn.Module:
        network = real_cut(graph, keep, own_code)  # type: ignore[arg-type]
        fc = next(s.module for s in graph.steps if s.layer == "fc")  # type: ignore[attr-defined]
        fc.weight = nn.Parameter(fc.weight[:, :2])
        return network

    real_cut = removal.cut
    monkeypatch.setattr(removal, "cut", halved)
    certificate = compact(randomise(Residual()), PLAN, EXAMPLE).certificate
    assert not certificate.passed
    assert "does not run" in certificate.reason


class OnlyReal(nn.Module):
    """Differs from another network on bright images alone, which random inputs never are."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) + torch.relu(x.flatten(1) - 1000.0)


def test_real_images_count() -> None:
    one, other = nn.Flatten(), OnlyReal()
    assert difference(one, other, [EXAMPLE]) == 0.0
    assert difference(one, other, [EXAMPLE, 2000 * torch.ones_like(EXAMPLE)]) == pytest.approx(0.5)


def test_difference_of_broken_outputs() -> None:
    zero = nn.Hardtanh(0.0, 1e-30)
    assert difference(zero, zero, [-torch.ones(1, 2)]) == 0.0
    assert difference(nn.Identity(), nn.Identity(), [torch.tensor([[float("inf")]])]) == float("inf")
    with pytest.raises(ValueError, match="gives"):
        difference(nn.Identity(), nn.Flatten(), [EXAMPLE])


class Logits(nn.Module):
    def __init__(self, table: list[list[float]]) -> None:
        super().__init__()
        self.table = torch.tensor(table)

    def forward(self, x: Tensor) -> Tensor:
        return self.table[x]


def test_top1_changes() -> None:
    reference = Logits([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [3.0, 3.0 - 1e-6, 0.0], [0.0, 2.0, 1.0]])
    other = Logits([[0.0, 1.0, 0.0], [0.9, 1.0, 0.0], [3.0 - 1e-6, 3.0, 0.0], [0.0, 2.0, 1.9]])
    assert top1_changes(reference, reference, [torch.arange(4)]) == (0, 4)
    assert top1_changes(reference, other, [torch.arange(3), torch.tensor([3, 0])]) == (2, 5)


def test_networks_that_write_to_their_input() -> None:
    layers = (nn.SiLU(inplace=True), nn.Conv2d(3, 6, 1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 64, 3))
    network = randomise(nn.Sequential(*layers))
    example, real = EXAMPLE.clone(), EXAMPLE.double()
    result = compact(network, plan_of(**{"1": off(6, 0, 4)}), example, real)
    assert result.certificate.passed, result.certificate
    assert torch.equal(example, EXAMPLE)
    assert torch.equal(real, EXAMPLE.double())
    assert top1_changes(network, network, [example]) == (0, 2)
    assert torch.equal(example, EXAMPLE)


class TwoHeads(nn.Module):
    """Gives a tensor a thousand times as large as the other."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 6, 1), nn.Linear(6, 4), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor]]:
        x = torch.relu(self.conv(x)).mean((2, 3))
        return {"one": 1000 * self.one(x), "more": (self.two(x),)}


def test_networks_that_give_several_tensors() -> None:
    network = randomise(TwoHeads()).eval()
    result = compact(network, plan_of(conv=off(6, 1, 3)), EXAMPLE)
    assert result.certificate.passed, result.certificate
    assert result.certificate.removed_units == 2
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.two.weight *= 1.01  # type: ignore[operator]
        other.two.bias *= 1.01  # type: ignore[operator]
    assert difference(network, other, [EXAMPLE]) == pytest.approx(0.01, rel=1e-3)


@dataclass
class Image:
    pixels: Tensor


class Nothing(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {}


class GivesAnObject(nn.Module):
    def forward(self, x: Tensor) -> object:
        return {"logits": x, "more": Image(x)}


def test_what_cannot_be_compared_is_not_taken_to_be_equal() -> None:
    with pytest.raises(ValueError, match="only tensors can be compared, not what gives Image"):
        difference(GivesAnObject(), GivesAnObject(), [EXAMPLE])
    with pytest.raises(ValueError, match="only tensors can be compared, not what gives none"):
        difference(Nothing(), Nothing(), [EXAMPLE])
