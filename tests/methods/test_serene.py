"""SeReNe's step, its cycles and its control arm."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

import methods
from bench import networks
from bench.compaction import find_sites
from methods.base import Batch, Evaluation, Site, StepContext
from methods.neuron_sensitivity import SensitivityProbe
from methods.serene import Serene, decaying_layers

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]


def attached(
    network: nn.Module, sites: Sequence[Site], context: StepContext, **config: float | str
) -> Serene:
    method = methods.create("serene", **config)
    assert isinstance(method, Serene)
    method.attach(network, sites, context)
    context.phase_steps = context.steps
    return method


def one_step(method: Serene, batch: Batch) -> dict[str, Tensor]:
    """A step without an optimiser, so that only the method moves the parameters; gives them as they were."""
    before = {name: p.detach().clone() for name, p in method.network.named_parameters()}
    method.network.zero_grad()
    method.training_step(batch)
    method.context.step += 1
    method.context.phase_step += 1
    method.after_step()
    return before


def batch_for(network: nn.Module, shape: tuple[int, ...]) -> Batch:
    generator = torch.Generator().manual_seed(2)
    return Batch(torch.randn(16, *shape, generator=generator), torch.randint(10, (16,), generator=generator))


@pytest.mark.parametrize("sensitivity", ["full", "lower-bound", "local"])
def test_the_step_of_decay(mlp: Network, make_context: MakeContext, sensitivity: str) -> None:
    network, sites = mlp
    batch = batch_for(network, (64,))
    probe = SensitivityProbe(network, ("0", "2", "4"), sensitivity)  # type: ignore[arg-type]
    found = probe.measure(network(batch.inputs))
    probe.remove()
    method = attached(network, sites, make_context(0.1), sensitivity=sensitivity, decay=20)
    assert method.rate == 20 / 100
    before = one_step(method, batch)
    for layer, s in found.items():
        expected = before[f"{layer}.weight"] * (1 - 0.2 * torch.relu(1 - s)).unsqueeze(1)
        assert torch.allclose(network.get_parameter(f"{layer}.weight"), expected, rtol=1e-5)
        assert torch.equal(network.get_parameter(f"{layer}.bias"), before[f"{layer}.bias"])


def test_the_last_layer_decays_at_one_minus_one_over_the_classes(
    mlp: Network, make_context: MakeContext
) -> None:
    network, sites = mlp
    method = attached(network, sites, make_context(0.1), decay=20)
    before = one_step(method, batch_for(network, (64,)))
    expected = before["4.weight"] * (1 - 0.2 * (1 - 1 / 10))
    assert torch.allclose(network.get_parameter("4.weight"), expected, rtol=1e-5)


def test_decay_is_the_gradient_of_its_regulariser(convnet: Network, make_context: MakeContext) -> None:
    """R = λ/2 Σ_i Ī_i ‖w_i‖² with Ī held; with a normalisation w_i includes its scale and shift."""
    network, sites = convnet
    network.train()
    method = attached(network, sites, make_context(0.1), sensitivity="lower-bound", decay=30)
    before = one_step(method, batch_for(network, (1, 8, 8)))
    groups = {
        "1": ["0.weight", "1.weight", "1.bias"],
        "4": ["3.weight", "4.weight", "4.bias"],
        "8": ["8.weight"],
    }
    decaying = {name: before[name].clone().requires_grad_() for names in groups.values() for name in names}
    total = torch.zeros(())
    for layer, names in groups.items():
        insensitivity = torch.relu(1 - method.sensitivities[layer])
        for name in names:
            squares = decaying[name].square().reshape(len(insensitivity), -1).sum(dim=1)
            total = total + 0.3 / 2 * (insensitivity * squares).sum()
    total.backward()
    for name, parameter in network.named_parameters():
        gradient = decaying[name].grad if name in decaying else None
        expected = before[name] if gradient is None else before[name] - gradient
        assert torch.allclose(parameter, expected, atol=1e-6), name


def test_layers_of_a_stream_decay_with_their_normalisation() -> None:
    """They are offered no site, and their weights alone would change nothing but scales."""
    network = networks.build("resnet20", (3, 32, 32), 10)
    inner = [site for site in find_sites(network, torch.zeros(2, 3, 32, 32)) if site.kind == "inner"]
    found = decaying_layers(network, inner)
    assert len(found) == 20
    assert {len(parameters) for layer, parameters in found.items() if layer != "fc"} == {3}
    owned = [id(parameter) for parameters in found.values() for parameter in parameters]
    assert len(set(owned)) == len(owned) == 19 * 3 + 1


def test_the_control_is_plain_decoupled_decay(mlp: Network, make_context: MakeContext) -> None:
    network, sites = mlp
    method = attached(network, sites, make_context(0.1), sensitivity="none", decay=20)
    assert all(not module._forward_hooks for module in network.modules())
    before = one_step(method, batch_for(network, (64,)))
    for name, parameter in network.named_parameters():
        factor = 0.8 if name.endswith("weight") else 1.0
        assert torch.allclose(parameter, before[name] * factor, rtol=1e-6)


def test_the_gradients_are_those_of_the_loss_alone(mlp: Network, make_context: MakeContext) -> None:
    network, sites = mlp
    batch = batch_for(network, (64,))
    loss = nn.functional.cross_entropy(network(batch.inputs), batch.targets)
    expected = torch.autograd.grad(loss, list(network.parameters()))
    method = attached(network, sites, make_context(0.1))
    assert method.training_step(batch) == loss
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        assert torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_a_neuron_without_influence_is_gone_after_its_time(mlp: Network, make_context: MakeContext) -> None:
    """S = 0 → (1 − λ)^t of it is left, e^-k for small λ."""
    network, sites = mlp
    with torch.no_grad():
        network.get_parameter("2.weight")[:, 3] = 0.0
    row = network.get_parameter("0.weight")[3].detach().clone()
    method = attached(network, sites, make_context(0.1, steps=300), decay=3, finetune=0)
    for _ in range(300):
        one_step(method, batch_for(network, (64,)))
    left = network.get_parameter("0.weight")[3] / row
    assert torch.allclose(left, torch.full_like(left, (1 - 0.01) ** 300), rtol=1e-3)
    assert torch.allclose(left, torch.full_like(left, math.exp(-3)), rtol=0.02)


def after_epoch(method: Serene, losses: Sequence[float]) -> list[float]:
    """Ends an epoch in which the training has moved every parameter. losses: what the validation says, in turn,
    the last of them for ever; gives those that were read."""
    context = method.context
    with torch.no_grad():
        for parameter in method.network.parameters():
            parameter.mul_(1.01)
        method.masks.enforce()
    context.step += context.steps_per_epoch
    context.phase_step += context.steps_per_epoch
    read: list[float] = []

    def validate() -> Evaluation:
        read.append(losses[min(len(read), len(losses) - 1)])
        return Evaluation(read[-1], 0.0)

    assert method.after_epoch(validate) is None
    return read


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(network: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_on_a_plateau_the_best_state_comes_back_exactly(convnet: Network, make_context: MakeContext) -> None:
    network, sites = convnet
    method = attached(network, sites, make_context(0.1, steps=200), patience=2)
    after_epoch(method, [2.0])
    after_epoch(method, [1.0])
    best = state_of(network)
    with torch.no_grad():
        network.get_buffer("1.running_mean").add_(1)  # type: ignore[operator]
    after_epoch(method, [1.011])  # bad
    assert not same(network, best)
    after_epoch(method, [1.009])  # not worse by a hundredth: the count begins anew
    after_epoch(method, [1.02])
    assert not same(network, best)
    assert len(after_epoch(method, [1.02, 99.0])) > 1  # the second in a row: a pruning that tolerates nothing
    assert same(network, best)
    assert method.best == {}


def test_patience_zero_prunes_after_each_epoch(mlp: Network, make_context: MakeContext) -> None:
    network, sites = mlp
    method = attached(network, sites, make_context(0.1), patience=0)
    assert len(after_epoch(method, [2.0, 99.0])) > 1
    assert len(after_epoch(method, [1.0, 99.0])) > 1


def test_the_bound_is_relative_to_the_lowest_loss_of_all(mlp: Network, make_context: MakeContext) -> None:
    network, sites = mlp
    method = attached(network, sites, make_context(0.5))
    after_epoch(method, [1.0, 99.0])
    after_epoch(method, [1.4, 1.51])
    assert not method.masks
    after_epoch(method, [1.4, 1.49])
    assert [int(kept.sum()) for kept in method.masks.kept.values()] == [1, 1]


def test_a_network_that_has_learnt_nothing_is_not_pruned(mlp: Network, make_context: MakeContext) -> None:
    network, sites = mlp
    chance = math.log(10)
    method = attached(network, sites, make_context(1.0, steps=200), sensitivity="none")
    one_step(method, batch_for(network, (64,)))
    for losses in ([5.0, chance], [chance + 1e-6, chance], [2.0, chance], [2.0, (2 + chance) / 2 + 1e-6]):
        after_epoch(method, losses)
        assert not method.masks
    after_epoch(method, [2.0, (2 + chance) / 2])
    assert method.masks
    method.lowest = 0.1
    assert method.bound() == 0.2


def test_before_the_last_cycle_there_is_a_pruning_and_then_none(
    mlp: Network, make_context: MakeContext
) -> None:
    network, sites = mlp
    method = attached(network, sites, make_context(0.5, steps=80), patience=5)
    for epoch in range(6):
        read = after_epoch(method, [2.0 - 0.1 * epoch, 99.0])
        assert (len(read) > 1) == (epoch == 5)
    assert not method.sparsifying()
    before = one_step(method, batch_for(network, (64,)))
    assert same(network, before)  # no decay any more
    method.context.phase_step -= 1
    method.context.step -= 1
    after_epoch(method, [1.0])
    best = state_of(network)
    assert after_epoch(method, [1.5]) == [1.5]
    assert same(network, best)  # the end: the best of the last cycle


@pytest.mark.parametrize("level", ["neuron", "weight"])
def test_what_is_removed_stays_so(mlp: Network, make_context: MakeContext, level: str) -> None:
    network, sites = mlp
    method = attached(network, sites, make_context(0.5), level=level, sensitivity="lower-bound")
    after_epoch(method, [1.0, 1.1, 99.0])
    plan = method.plan(0.5)
    masks = plan.kept if level == "neuron" else plan.weight_masks
    assert (plan.weight_masks if level == "neuron" else plan.kept) == {}
    assert any(not kept.all() for kept in masks.values())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    one_step(method, batch_for(network, (64,)))
    for name, kept in masks.items():
        weight = network.get_parameter(name if level == "weight" else f"{name}.weight")
        assert (weight[~kept] == 0).all()
        assert (weight[kept] != 0).all()
        if level == "neuron":
            assert (network.get_parameter(f"{name}.bias")[~kept] == 0).all()


def test_strength_zero_is_plain_training(mlp: Network, make_context: MakeContext) -> None:
    network, sites = mlp
    method = attached(network, sites, make_context(0.0), decay=50)
    before = one_step(method, batch_for(network, (64,)))
    assert same(network, before)
    assert after_epoch(method, [1.0]) == []
    assert method.plan(0.0).kept == {}


def test_state_is_that_of_the_middle_of_a_cycle(convnet: Network, make_context: MakeContext) -> None:
    network, sites = convnet
    method = attached(network, sites, make_context(0.5, steps=200), patience=2)
    for losses in ([1.0, 99.0], [1.2, 99.0], [1.2, 1.3, 99.0], [0.9], [0.95]):
        after_epoch(method, losses)
    state = method.state_dict()
    assert all(isinstance(value, Tensor | float | int | str) for value in state.values())
    other = attached(network, sites, make_context(0.5, steps=200), patience=2)
    other.load_state_dict(state)
    assert (other.best_loss, other.bad_epochs, other.lowest) == (0.9, 1, 0.9)
    assert all(torch.equal(value, method.best[name]) for name, value in other.best.items())
    assert all(torch.equal(kept, method.masks.kept[name]) for name, kept in other.masks.kept.items())


def test_a_plan_for_another_strength_is_refused(mlp: Network, make_context: MakeContext) -> None:
    method = attached(*mlp, make_context(0.5))
    with pytest.raises(ValueError, match=r"trained for strength 0\.5"):
        method.plan(0.2)


@pytest.mark.parametrize(
    "config",
    [
        {"sensitivity": "some"},
        {"level": "layer"},
        {"decay": 0},
        {"decay": -1},
        {"patience": -1},
        {"finetune": 1},
    ],
)
def test_settings_out_of_range_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Serene.Config(**config)
