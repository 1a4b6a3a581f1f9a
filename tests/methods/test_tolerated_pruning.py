"""The threshold under a bound on the loss: bisection against a scan of all thresholds."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from bench.measure.accuracy import score
from methods.base import Batch, Evaluation, Site, SparsityPlan
from methods.masks import Masks
from methods.tolerated_pruning import (
    folded_weight,
    highest_tolerated,
    neuron_magnitudes,
    prune_within,
    weight_magnitudes,
)

Network = tuple[nn.Module, list[Site]]


@given(st.lists(st.floats(0, 10), max_size=40).map(sorted), st.floats(-1, 11))
def test_finds_what_a_scan_finds(losses: list[float], bound: float) -> None:
    scan = max((at for at, loss in enumerate(losses) if loss <= bound), default=-1)
    assert highest_tolerated(losses.__getitem__, len(losses), bound) == scan


@given(st.lists(st.floats(0, 10), min_size=1, max_size=40), st.floats(0, 10))
def test_where_the_loss_goes_up_and_down_the_bound_holds_all_the_same(
    losses: list[float], bound: float
) -> None:
    found = highest_tolerated(losses.__getitem__, len(losses), bound)
    assert found == -1 or losses[found] <= bound
    assert found == len(losses) - 1 or losses[found + 1] > bound


@settings(max_examples=25)
@given(st.integers(1, 100_000))
def test_few_probes(count: int) -> None:
    probes: list[int] = []

    def loss_at(index: int) -> float:
        probes.append(index)
        return float(index)

    highest_tolerated(loss_at, count, 0.6 * count)
    assert len(probes) <= count.bit_length()


def test_folding_is_the_network_in_evaluation_mode(convnet: Network) -> None:
    network, _ = convnet
    torch.manual_seed(1)
    norm = network.get_submodule("4")
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(tensor, 0.5, 2.0)  # type: ignore[arg-type]
    maps = torch.randn(3, 8, 6, 6)
    network.eval()
    with torch.no_grad():
        zero = network.get_submodule("4")(network.get_submodule("3")(torch.zeros_like(maps)))[:, :, 2:4, 2:4]
        out = network.get_submodule("4")(network.get_submodule("3")(maps))[:, :, 2:4, 2:4]
        folded = functional.conv2d(maps, folded_weight(network, "3", "4"), padding=1)[:, :, 2:4, 2:4]
    assert torch.allclose(out - zero, folded, atol=1e-5)
    assert torch.equal(folded_weight(network, "8", "8"), network.get_parameter("8.weight"))


def test_magnitudes_do_not_change_with_what_a_norm_takes_back(convnet: Network) -> None:
    network, sites = convnet
    before = neuron_magnitudes(network, sites)
    with torch.no_grad():
        network.get_parameter("0.weight").mul_(7)
        network.get_submodule("1").running_var.mul_(49)  # type: ignore[union-attr, operator]
    after = neuron_magnitudes(network, sites)
    assert torch.allclose(before["0"], after["0"], rtol=1e-3)


def test_magnitudes_of_coupled_producers_are_the_larger(mlp: Network) -> None:
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(4, 3))
    coupled = Site("0", 3, "stream", ("0", "1"), (), ("0", "1"), (), 1.0, 1.0)
    expected = torch.maximum(network[0].weight.abs().amax(1), network[1].weight.abs().amax(1))
    assert torch.equal(neuron_magnitudes(network, [coupled])["0"], expected)


def test_weight_magnitudes_are_the_weights_where_there_is_no_norm(mlp: Network) -> None:
    network, sites = mlp
    found = weight_magnitudes(network, sites)
    assert found.keys() == {"0.weight", "2.weight"}
    assert all(torch.equal(found[name], network.get_parameter(name).abs()) for name in found)


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(200, 64, generator=generator), torch.randint(10, (200,), generator=generator)


def trained(network: nn.Module) -> tuple[Tensor, Tensor]:
    inputs, targets = data()
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        functional.cross_entropy(network(inputs), targets).backward()
        optimiser.step()
    return inputs, targets


def loss_of(network: nn.Module, inputs: Tensor, targets: Tensor) -> float:
    with torch.no_grad():
        return float(functional.cross_entropy(network(inputs), targets))


def test_a_threshold_whose_logits_are_not_finite_is_not_tolerated(mlp: Network) -> None:
    """As the harness says it. What is tolerated below it is removed all the same."""
    network, sites = mlp
    inputs, targets = trained(network)
    magnitudes = neuron_magnitudes(network, sites)
    masks = Masks(network, sites)

    def validate() -> Evaluation:
        removed = sum(int((~kept).sum()) for kept in masks.kept.values())
        images = inputs * torch.inf if removed > 4 else inputs
        return Evaluation(score(network, [Batch(images, targets)]).loss, 0.0)

    assert prune_within(masks, magnitudes, True, validate, bound=100.0) > 0
    assert sum(int((~kept).sum()) for kept in masks.kept.values()) == 4
    assert loss_of(network, inputs, targets) < 100


@pytest.mark.parametrize("of_neurons", [True, False])
@pytest.mark.parametrize("tolerance", [0.05, 0.5, 3.0])
def test_prunes_to_the_threshold_of_a_scan(mlp: Network, of_neurons: bool, tolerance: float) -> None:
    network, sites = mlp
    inputs, targets = trained(network)
    bound = (1 + tolerance) * loss_of(network, inputs, targets)
    magnitudes = neuron_magnitudes(network, sites) if of_neurons else weight_magnitudes(network, sites)
    if not of_neurons:
        # Few enough thresholds for a scan: the weights of all but the largest steps of 0.01 are tied.
        magnitudes = {name: (m * 50).ceil() / 50 for name, m in magnitudes.items()}
    state = {name: value.clone() for name, value in network.state_dict().items()}

    def plan_at(threshold: float) -> SparsityPlan:
        kept = {name: (m >= threshold) | (m == m.max()) for name, m in magnitudes.items()}
        return SparsityPlan(kept=kept) if of_neurons else SparsityPlan(weight_masks=kept)

    losses: dict[float, float] = {}
    for threshold in torch.cat([m.flatten() for m in magnitudes.values()]).unique().tolist():
        network.load_state_dict(state)
        masks = Masks(network, sites)
        masks.set(plan_at(threshold))
        masks.enforce()
        losses[threshold] = loss_of(network, inputs, targets)
    network.load_state_dict(state)
    masks = Masks(network, sites)
    found = prune_within(
        masks, magnitudes, of_neurons, lambda: Evaluation(loss_of(network, inputs, targets), 0.0), bound
    )
    # The first threshold beyond the bound ends what a scan from below would go to. The loss of a network need
    # not rise with every weight less, so that the bisection may have jumped over a first one.
    tolerated = [t for t, loss in losses.items() if loss <= bound]
    beyond = [t for t, loss in losses.items() if loss > bound]
    if max(tolerated) < min(beyond, default=torch.inf):
        assert found == max(tolerated)
    assert found in tolerated
    assert found == max(losses) or min(t for t in losses if t > found) in beyond
    assert loss_of(network, inputs, targets) == losses[found]
    assert plan_at(found).kept.keys() == masks.kept.keys()
    for name, kept in (plan_at(found).kept or plan_at(found).weight_masks).items():
        assert torch.equal(kept, (masks.kept or masks.weights)[name])


def test_a_bound_that_nothing_meets_changes_nothing(mlp: Network) -> None:
    network, sites = mlp
    inputs, targets = trained(network)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    masks = Masks(network, sites)
    evaluate = lambda: Evaluation(loss_of(network, inputs, targets), 0.0)  # noqa: E731
    assert prune_within(masks, neuron_magnitudes(network, sites), True, evaluate, -1.0) == 0.0
    assert not masks
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("of_neurons", [True, False])
def test_something_of_every_layer_stays_and_what_is_gone_stays_gone(mlp: Network, of_neurons: bool) -> None:
    network, sites = mlp
    inputs, targets = data()
    masks = Masks(network, sites)
    measure = neuron_magnitudes if of_neurons else weight_magnitudes
    previous: dict[str, Tensor] = {}
    for bound in (2.31, 2.34, 1e9):
        prune_within(
            masks,
            measure(network, sites),
            of_neurons,
            lambda: Evaluation(loss_of(network, inputs, targets), 0.0),
            bound,
        )
        current = masks.kept or masks.weights
        assert all(not (current[name] & ~kept).any() for name, kept in previous.items())
        previous = {name: kept.clone() for name, kept in current.items()}
    assert [int(kept.sum()) for kept in previous.values()] == [1, 1]
