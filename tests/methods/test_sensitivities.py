"""Gates in front of the readers: exact to fold, alive at zero, and solving the problem that they are said to solve."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.linear_model import Lasso
from torch import Tensor, nn

import methods
from bench.compaction import compact, find_sites
from methods.base import Site, SparsityPlan
from methods.sensitivities import Sensitivities


def pooled(activation: Callable[[], nn.Module]) -> nn.Module:
    """Convolution, norm, pooling, grouped convolution, flattening to four features a unit, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        activation(),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, groups=2, padding=1),
        activation(),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 12),
        activation(),
        nn.Linear(12, 10),
    ).double()


def gated(network: nn.Module, example: Tensor) -> tuple[Sensitivities, list[Site]]:
    sites = find_sites(network, example)
    return Sensitivities(network, sites), sites


@pytest.mark.parametrize("activation", [nn.ReLU, nn.SiLU, nn.Sigmoid, nn.LeakyReLU])
def test_folding_and_removal_change_nothing(activation: Callable[[], nn.Module]) -> None:
    """Also for negative s, and for activations that are not homogeneous or not zero at zero."""
    torch.manual_seed(0)
    images = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    network = pooled(activation).eval()
    gates, _ = gated(network, images[:1])
    assert {site.name: site.size for site in gates.sites} == {"0": 6, "4": 8, "8": 12}
    with torch.no_grad():
        for s in gates.values.values():
            s.copy_(torch.randn(len(s)))
            s[1::3] = 0.0
    before = network(images)
    kept = gates.kept()
    gates.fold()
    torch.testing.assert_close(network(images), before, rtol=0, atol=1e-12)
    result = compact(network, SparsityPlan(kept=kept), images[:1], images)
    assert result.certificate.passed
    torch.testing.assert_close(result.network(images), before, rtol=0, atol=1e-10)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_folding_into_a_transposed_convolution() -> None:
    """Whose weight has its inputs first; with as many outputs as inputs nothing would complain."""
    torch.manual_seed(0)
    images = torch.randn(3, 1, 8, 8, dtype=torch.float64)
    network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 6, 2, 2), nn.Flatten())
    gates, _ = gated(network.double().eval(), images[:1])
    with torch.no_grad():
        gates.values["0"].copy_(torch.tensor([0.5, 0.0, -1.0, 2.0, 0.0, 1.0]))
    before, kept = network(images), gates.kept()
    gates.fold()
    torch.testing.assert_close(network(images), before, rtol=0, atol=1e-12)
    result = compact(network, SparsityPlan(kept=kept), images[:1], images)
    torch.testing.assert_close(result.network(images), before, rtol=0, atol=1e-10)


def test_units_that_a_reader_takes_in_another_order_have_no_gates() -> None:
    """Gated and removed would be different units."""
    channels_last = Lambda(lambda x: x.permute(0, 2, 3, 1).flatten(1))
    for between, reader in (
        (nn.ChannelShuffle(2), nn.Conv2d(6, 4, 3)),
        (Lambda(lambda x: x.flip(1)), nn.Conv2d(6, 4, 3)),
        (channels_last, nn.Linear(6 * 36, 10)),
    ):
        network = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), between, reader)
        gates, (site,) = gated(network, torch.zeros(1, 1, 8, 8))
        assert (site.kind, site.in_order, gates.sites) == ("inner", False, [])
        refusal = methods.create("heterogeneous-sensitivity").supports(network, [site])
        assert "in another order" in str(refusal)


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def test_a_unit_that_is_off_still_has_a_gradient() -> None:
    """dE/ds_i = Σ d_i·φ(z̃_i), which in front of a ReLU would be 0 at s_i = 0; and the unit comes back."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    inputs = torch.randn(20, 4, dtype=torch.float64)
    gates, _ = gated(network, inputs[:1])
    s = gates.values["0"]
    with torch.no_grad():
        s.zero_()
    loss = (network(inputs) - 3).square().mean()
    loss.backward()
    hidden = network[1](network[0](inputs))
    derivative = (network[2].bias - 3).expand(20, 2) * 2 / 40 @ network[2].weight
    assert s.grad is not None
    torch.testing.assert_close(s.grad, (derivative * hidden).sum(dim=0))
    assert s.grad.all()
    gates.step(1.0, 0.0)
    assert gates.units() == 3


def test_streams_have_no_gates_and_branches_do() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(1, 4, 3, padding=1)
            self.inner = nn.Conv2d(4, 6, 3, padding=1)
            self.outer = nn.Conv2d(6, 4, 3, padding=1)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            x = x + self.outer(torch.relu(self.inner(x)))
            return self.head(x.mean((2, 3)))

    gates, sites = gated(Residual(), torch.zeros(1, 1, 8, 8))
    assert [site.name for site in sites] == ["stem", "inner"]
    assert [site.name for site in gates.sites] == ["inner"]
    assert len(list(gates.weights())) == 2


@pytest.mark.parametrize("multiplier", [0.01, 0.1, 0.5])
def test_the_steps_solve_the_lasso(multiplier: float) -> None:
    """On fixed features min E + λ‖s‖₁ is a lasso, which scikit-learn solves by coordinate descent."""
    torch.manual_seed(0)
    inputs = torch.randn(200, 10, dtype=torch.float64)
    targets = inputs @ torch.tensor([2.0, -1, 0.5, 0.2, 0, 0, 0, 0, 0, 0]).double() + 0.1 * torch.randn(200)
    network = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 1, bias=False)).double()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(10))
        network[1].weight.fill_(1.0)
    gates, _ = gated(network, inputs[:1])
    for _ in range(1500):
        (0.5 * (network(inputs).flatten() - targets).square().mean()).backward()
        gates.step(0.1, multiplier)
    expected = torch.tensor(
        Lasso(alpha=multiplier, fit_intercept=False, tol=1e-12).fit(inputs.numpy(), targets.numpy()).coef_
    )
    torch.testing.assert_close(gates.values["0"].detach(), expected, rtol=0, atol=1e-6)
    assert torch.equal(gates.kept()["0"], expected != 0)


@pytest.mark.parametrize(("multiplier", "decay"), [(1e-3, 5e-4), (0.1, 1e-2), (1e-4, 1.0)])
def test_with_weight_decay_the_penalty_is_a_two_thirds_power(multiplier: float, decay: float) -> None:
    """Over the scale c that leaves a ReLU network as it is (s → cs, w → w/c), ℓ1 on s and decay on w together cost at
    least (3/2)·λ^{2/3}·wd^{1/3}·(|s|·‖w‖)^{2/3}; without decay the cost has no lower bound but zero."""
    torch.manual_seed(0)
    inputs = torch.randn(7, 5, dtype=torch.float64)
    network = nn.Sequential(nn.Linear(5, 1, bias=False), nn.ReLU(), nn.Linear(1, 3)).double()
    gates, _ = gated(network, inputs[:1])
    s, w = gates.values["0"].detach().clone(), network[0].weight.detach().clone()
    outputs = network(inputs)

    def cost(log_scale: float) -> float:
        c = torch.tensor(log_scale, dtype=torch.float64).exp()
        with torch.no_grad():
            gates.values["0"].copy_(c * s)
            network[0].weight.copy_(w / c)
        torch.testing.assert_close(network(inputs), outputs)
        return multiplier * gates.penalty() + decay / 2 * float(network[0].weight.detach().square().sum())

    least = minimize_scalar(cost, bounds=(-15, 15), method="bounded", options={"xatol": 1e-10}).fun
    product = float(s.abs().sum() * w.norm())
    assert least == pytest.approx(
        1.5 * multiplier ** (2 / 3) * decay ** (1 / 3) * product ** (2 / 3), rel=1e-8
    )
    decay = 0.0
    assert cost(-15) < 1e-6 * multiplier


def test_the_last_unit_of_a_layer_stays(mlp: tuple[nn.Module, list[Site]]) -> None:
    """The one of the largest |s|·‖w‖, unshrunk."""
    network, sites = mlp
    gates = Sensitivities(network, sites)
    with torch.no_grad():
        network.get_parameter("0.weight")[7].mul_(100)
        gates.values["2"].fill_(50.0)
    gates.step(0.1, 100.0)
    assert gates.kept()["0"].nonzero().flatten().tolist() == [7]
    assert gates.values["0"][7] == 1.0
    assert gates.kept()["2"].all()
    gates.step(0.1, 100.0)
    assert gates.units() == 11


def test_frozen_steps_leave_zeros_alone(mlp: tuple[nn.Module, list[Site]]) -> None:
    network, sites = mlp
    gates = Sensitivities(network, sites)
    with torch.no_grad():
        gates.values["0"][::2] = 0.0
    before = gates.values["0"].detach().clone()
    network(torch.randn(8, 64)).square().sum().backward()
    gates.step_frozen(0.1)
    assert torch.equal(gates.values["0"] == 0, before == 0)
    assert (gates.values["0"] != before)[1::2].any()
