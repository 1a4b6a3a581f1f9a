"""Layer sparsity: the proximal step against other solvers, merging against the unmerged network, and resumes."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import scipy.optimize
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import methods
from bench import data, networks
from bench.compaction import apply_architecture, compact, find_sites
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe
from methods.base import Phase, StepContext
from methods.layer_sparsity import LayerSparsity, Signs
from methods.linear_runs import Inner

MakeContext = Callable[..., StepContext]


def two_layers(bias: bool = True, norm: bool = False) -> tuple[nn.Module, Signs]:
    torch.manual_seed(0)
    parts: list[tuple[str, nn.Module]] = [("layer", nn.Linear(4, 3, bias=bias))]
    if norm:
        parts.append(("norm", nn.BatchNorm1d(3)))
    network = nn.Sequential(OrderedDict([*parts, ("relu", nn.ReLU())])).double()
    if norm:
        module: Any = network.get_submodule("norm")
        with torch.no_grad():
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.copy_(torch.tensor([1.3, -0.7, 0.4]))
            module.bias.normal_()
    return network, Signs(network, Inner("layer", "norm" if norm else None, "relu", None))


def flat(signs: Signs) -> Tensor:
    return torch.cat([part.detach().flatten().clone() for part in signs.folded() if part is not None])


def objective(point: Tensor, start: Tensor, threshold: float) -> float:
    """½ ‖x − x₀‖² + t ‖neg(x)‖."""
    return float(0.5 * (point - start).square().sum() + threshold * point.clamp_max(0).norm())


@pytest.mark.parametrize("threshold", [0.05, 0.5, 0.9, 5.0])
@pytest.mark.parametrize("bias", [True, False])
def test_the_proximal_step_minimises(threshold: float, bias: bool) -> None:
    """Against random perturbations of many sizes, and against a generic solver started elsewhere."""
    _, signs = two_layers(bias)
    start = flat(signs)
    signs.shrink(torch.tensor(threshold, dtype=torch.float64))
    found = flat(signs)
    best = objective(found, start, threshold)
    generator = torch.Generator().manual_seed(1)
    for size in (1e-6, 1e-4, 1e-2, 1.0):
        for _ in range(300):
            moved = found + size * torch.randn(found.shape, generator=generator, dtype=torch.float64)
            assert objective(moved, start, threshold) >= best - 1e-15
    solved = scipy.optimize.minimize(
        lambda x: objective(torch.from_numpy(x), start, threshold),
        start.numpy() * 0.5,
        method="Powell",
        options={"xtol": 1e-9, "ftol": 1e-14, "maxiter": 10_000},
    )
    assert solved.fun >= best - 1e-12
    assert solved.fun == pytest.approx(best, abs=1e-5)
    assert torch.from_numpy(solved.x).sub(found).abs().max() < 1e-2


@pytest.mark.parametrize("norm", [True, False])
def test_negative_parts_end_at_zero_exactly(norm: bool) -> None:
    _, signs = two_layers(norm=norm)
    positive = flat(signs).clamp_min(0)
    length = signs.negative_norm()
    assert length > 0
    assert not signs.is_nonnegative()
    signs.shrink(length * 1.000001)
    assert signs.is_nonnegative()
    assert signs.negative_norm() == 0
    assert torch.allclose(flat(signs), positive, atol=1e-12)


def test_with_a_norm_the_step_is_that_of_the_folded_layer() -> None:
    network, signs = two_layers(norm=True)
    before = flat(signs)
    inputs = torch.rand(6, 4, dtype=torch.float64)
    weight, bias = signs.folded()
    assert bias is not None
    linear = network.eval().get_submodule("norm")(network.get_submodule("layer")(inputs))
    assert torch.allclose(nn.functional.linear(inputs, weight, bias), linear)
    negative, threshold = before.clamp_max(0), 0.3
    signs.shrink(torch.tensor(threshold, dtype=torch.float64))
    expected = before.clamp_min(0) + negative * (1 - threshold / negative.norm())
    assert torch.allclose(flat(signs), expected)
    with torch.no_grad():
        network.get_parameter("norm.bias").copy_(torch.tensor([-1.0, 2.0, -3.0]))
    assert not signs.is_nonnegative()


def test_he_normal_weights_have_a_negative_norm_of_the_root_of_their_outputs() -> None:
    torch.manual_seed(0)
    network = networks.build("mlp-deep", (1, 28, 28), 10)
    norms = [float(Signs(network, Inner(f"fc{at}", None, "", None)).negative_norm()) for at in range(2, 7)]
    assert norms == pytest.approx([100**0.5] * 5, rel=0.05)


def test_products_of_nonnegative_matrices_have_nearly_one_rank() -> None:
    """The reason for pretraining and a ramp (§3d-1): stable rank ‖M‖_F² / ‖M‖₂² of 1.1 to 1.6."""
    torch.manual_seed(0)
    product = torch.eye(50)
    for _ in range(3):
        product = torch.randn(50, 50).clamp_min(0) @ product
    stable_rank = product.norm() ** 2 / torch.linalg.matrix_norm(product, 2) ** 2
    assert 1.0 <= stable_rank < 1.6


# The stages ----------------------------------------------------------------------------------------------------------


def deep(make_context: MakeContext, strength: float = 1.0, **config: Any) -> LayerSparsity:
    torch.manual_seed(0)
    network = networks.build("mlp-deep", (1, 8, 8), 10)
    method = methods.create("layer-sparsity", **config)
    assert isinstance(method, LayerSparsity)
    method.attach(network, find_sites(network, torch.zeros(1, 1, 8, 8)), make_context(strength))
    return method


def make_inactive(method: LayerSparsity, *layers: str) -> None:
    with torch.no_grad():
        for name in layers:
            for parameter in method.network.get_submodule(name).parameters():
                parameter.abs_()
                parameter.mul_(0.2)


def begin(method: LayerSparsity, phase: str) -> None:
    method.context.phase = Phase(phase, 0.5)
    method.start_phase(method.context.phase)


def test_thresholds_sum_to_the_budget_and_follow_ramp_and_rate(make_context: MakeContext) -> None:
    method = deep(make_context, strength=1.5, ramp=0.5)
    rates = [4.0, 4.0, 4.0, 4.0, 2.0, 2.0, 2.0, 0.0]
    method.context.phase_steps, method.context.learning_rates = 8, rates
    begin(method, "sparsify")
    start = float(method._signs["fc3"].negative_norm())
    shares = [method._share(at) for at in range(8)]
    assert sum(shares) == pytest.approx(1)
    grown = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]
    total = sum(rate * part for rate, part in zip(rates, grown, strict=True))
    assert shares == pytest.approx([r * g / total for r, g in zip(rates, grown, strict=True)])
    for at in range(8):
        method.context.phase_step = at + 1
        method.after_step()
        left = max(0.0, 1 - 1.5 * sum(shares[: at + 1]))
        assert float(method._signs["fc3"].negative_norm()) == pytest.approx(left * start, abs=1e-4)
    assert [inner.layer for inner in method.find_inactive()] == ["fc2", "fc3", "fc4", "fc5", "fc6"]


@pytest.mark.parametrize("layers", [("fc2",), ("fc3", "fc4"), ("fc2", "fc4", "fc6"), ("fc5", "fc6")])
def test_merging_changes_nothing(make_context: MakeContext, layers: tuple[str, ...]) -> None:
    """Against the unmerged network in float64, before and after compaction."""
    method = deep(make_context)
    method.network.double()
    make_inactive(method, *layers)
    with torch.no_grad():
        for name in layers:  # inactive, and biased
            method.network.get_parameter(f"{name}.bias").uniform_(0, 1)
    inputs = torch.randn(64, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        expected = method.network(inputs)
    begin(method, "refit")
    assert method.inactive is not None
    assert tuple(inner.layer for inner in method.inactive) == layers
    with torch.no_grad():
        assert (method.network(inputs) - expected).abs().max() < 2e-14 * expected.abs().max() * 10
    frozen = [name for name, p in method.network.named_parameters() if not p.requires_grad]
    assert frozen == [f"{name}.{kind}" for name in layers for kind in ("weight", "bias")]
    method.detach()
    plan = method.plan(1.0)
    result = compact(method.network, plan, inputs, real=inputs)
    assert result.certificate.passed
    with torch.no_grad():
        assert (result.network(inputs) - expected).abs().max() < 1e-12 * expected.abs().max()
    maps = [module for module in result.network.modules() if isinstance(module, nn.Linear)]
    assert len(maps) == 7 - len(layers)
    assert len(find_sites(result.network, inputs)) == 6 - len(layers)
    assert plan.notes[1] == f"linear maps and convolutions: {7 - len(layers)} of 7"
    assert all(p.requires_grad for p in method.network.parameters())
    rebuilt = apply_architecture(method.network, result.architecture, inputs)
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt.eval()(inputs), result.network(inputs))


def test_a_negative_bias_keeps_a_layer_active(make_context: MakeContext) -> None:
    method = deep(make_context)
    make_inactive(method, "fc3")
    with torch.no_grad():
        method.network.get_parameter("fc3.bias")[7] = -1e-30
    begin(method, "refit")
    assert method.inactive == ()


def test_strength_zero_keeps_even_a_nonnegative_layer(make_context: MakeContext) -> None:
    method = deep(make_context, strength=0.0)
    make_inactive(method, "fc3")
    begin(method, "refit")
    method.detach()
    assert method.plan(0.0).layer_actions == ()


def test_without_a_refit_the_plan_is_exact(make_context: MakeContext) -> None:
    method = deep(make_context, refit=0.0)
    assert [phase.name for phase in method.phases(10)] == ["pretrain", "sparsify"]
    make_inactive(method, "fc3", "fc6")
    inputs = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        expected = method.network(inputs)
    method.detach()
    result = compact(method.network, method.plan(1.0), inputs)
    assert result.certificate.passed
    with torch.no_grad():
        assert torch.allclose(result.network(inputs), expected, rtol=1e-4, atol=1e-4)


def test_a_random_refit_forgets_the_weights(make_context: MakeContext) -> None:
    method = deep(make_context, refit_from="random")
    make_inactive(method, "fc3", "fc4")
    before = method.network.get_parameter("fc1.weight").clone()
    begin(method, "refit")
    weights = {name: p.detach() for name, p in method.network.named_parameters()}
    assert not torch.equal(weights["fc1.weight"], before)
    assert torch.equal(weights["fc3.weight"], torch.eye(100))
    assert float(weights["fc5.weight"].std()) == pytest.approx((2 / 100) ** 0.5, rel=0.05)
    assert all(float(w.abs().sum()) == 0 for name, w in weights.items() if name.endswith("bias"))


@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_a_random_refit_draws_anew_also_where_all_layers_are_active(
    make_context: MakeContext, strength: float
) -> None:
    method = deep(make_context, strength, refit_from="random")
    before = method.network.get_parameter("fc1.weight").clone()
    begin(method, "refit")
    assert method.inactive == ()
    assert torch.equal(method.network.get_parameter("fc1.weight"), before) == (strength == 0)


@pytest.mark.parametrize("inactive", [(), ("fc2",), ("fc3",), ("fc4", "fc5")])
def test_a_dead_layer_is_told_as_a_site_without_units(
    make_context: MakeContext, inactive: tuple[str, ...]
) -> None:
    """Alone, behind a merged run, or at the end of one: the network gives the same for every image."""
    method = deep(make_context)
    make_inactive(method, *inactive)
    with torch.no_grad():
        for parameter in method.network.get_submodule("fc6").parameters():
            parameter.copy_(-parameter.abs())
    begin(method, "refit")
    method.detach()
    plan = method.plan(1.0)
    assert {site: int(kept.sum()) for site, kept in plan.kept.items()} == {"fc6": 0}
    assert plan.notes[-1] == "dead layers: fc6"
    result = compact(method.network, plan, torch.randn(8, 1, 8, 8))
    assert result.certificate.passed
    assert "fc6" in result.collapsed
    assert method.find_dead() == ("fc6",)


def test_a_layer_of_negative_weights_behind_no_relu_is_not_dead(make_context: MakeContext) -> None:
    """fc3 runs linear into fc4, whose product is positive; in fc6 a positive bias is enough."""
    method = deep(make_context)
    make_inactive(method, "fc3")
    method.inactive = method.find_inactive()
    with torch.no_grad():
        for name in ("fc3", "fc4"):
            for parameter in method.network.get_submodule(name).parameters():
                parameter.copy_(-parameter.abs())
        for parameter in method.network.get_submodule("fc6").parameters():
            parameter.copy_(-parameter.abs())
        method.network.get_parameter("fc6.bias")[3] = 1e-6
    assert method.find_dead() == ()
    assert method.plan(1.0).kept == {}


def test_a_relu_in_place_is_given_back_as_it_was(make_context: MakeContext) -> None:
    method = deep(make_context)
    relu: Any = method.network.get_submodule("relu3")
    relu.inplace = True
    make_inactive(method, "fc3")
    begin(method, "refit")
    values = torch.tensor([-1.0, 1.0])
    assert torch.equal(relu(values), torch.tensor([-1.0, 1.0]))
    method.detach()
    assert relu.inplace
    assert torch.equal(relu(values), torch.tensor([0.0, 1.0]))


def test_refused() -> None:
    with pytest.raises(ValidationError, match="leave no time"):
        methods.create("layer-sparsity").Config(pretrain=0.5, refit=0.5)
    method = methods.create("layer-sparsity")
    assert "between two ReLUs" in str(method.supports(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), []))
    assert method.supports(networks.build("mlp-300-100", (1, 8, 8), 10), []) is None


# On the harness ------------------------------------------------------------------------------------------------------


def open_loop(refit_from: str, **settings: Any) -> tuple[LayerSparsity, Loop]:
    torch.manual_seed(0)
    network = networks.build("mlp-deep", (1, 8, 8), 10)
    method = methods.create("layer-sparsity", refit_from=refit_from)
    assert isinstance(method, LayerSparsity)
    recipe = Recipe(epochs=6, batch_size=64, weight_decay=1e-4)
    sites = find_sites(network, torch.zeros(1, 1, 8, 8))
    loop = Loop(
        network, method, sites, data.load("digits", None), recipe, 0, torch.device("cpu"), 6.0, **settings
    )
    return method, loop


@pytest.mark.parametrize("refit_from", ["merged", "random"])
def test_a_run_cut_short_in_the_refit_resumes(refit_from: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)

    class PowerCut(Exception):
        pass

    def cut(epoch: int, phase: str) -> None:
        if epoch == 6:
            raise PowerCut

    straight, loop = open_loop(refit_from)
    phases = plan_phases(straight.phases(6), 6)
    assert phases[-1].epochs == 2
    loop.run(phases)
    assert straight.inactive  # the refit had something to resume
    file = tmp_path / "checkpoint"
    with pytest.raises(PowerCut):
        open_loop(refit_from, checkpoint=file, checkpoint_seconds=0.0, on_epoch=cut)[1].run(phases)
    resumed, second = open_loop(refit_from, checkpoint=file)
    second.run(phases)
    assert second.progress.history == loop.progress.history
    for name, value in straight.network.state_dict().items():
        assert torch.equal(resumed.network.state_dict()[name], value), name
    straight.detach()
    resumed.detach()
    assert straight.plan(6.0) == resumed.plan(6.0)
    assert not any(module._forward_hooks for module in resumed.network.modules())
