"""Every method on tokens, whose units are on the last dim: MLP widths, and queries, keys and values of attention."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import methods
from bench import suite
from bench.compaction import find_sites
from bench.errors import BadInput
from bench.filters import Filters
from bench.plan import make_plan
from methods.gates import Gate, Placement
from methods.neuron_sensitivity import SensitivityProbe
from methods.sensitivities import Sensitivities, takes_gate
from tests.contract.cases import run_cell
from tests.methods.token_network import transformer

IMAGES = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(3))
REFUSALS = {
    "dependent-beta-bernoulli": "the units of attention.query are of tokens, and its gates are of whole images",
    "network-slimming": "it has no batch normalisation with a scale to penalise",
    "layer-sparsity": "it has no layer between two ReLUs whose ReLU is a module of its own",
}


def suite_of(method: str) -> suite.Suite:
    grid = methods.create(method).strengths
    recipe = {"epochs": 5, "batch_size": 256, "optimizer": "adam", "learning_rate": 3e-3}
    network = "tests.methods.token_network:transformer"
    return suite.Suite.model_validate(
        {
            "name": "tokens",
            "title": "tokens",
            "seeds": [0],
            "workloads": [{"dataset": "digits", "network": network, "recipe": recipe}],
            "methods": [{"name": method, "strengths": (grid[len(grid) // 2],)}],
        }
    )


@pytest.mark.parametrize("method", methods.available())
def test_every_method_runs_and_is_certified_or_says_why_not(method: str, tmp_path: Path) -> None:
    if method in REFUSALS:
        with pytest.raises(BadInput) as caught:
            make_plan(suite_of(method), Filters(), None)
        assert str(caught.value).endswith(f":transformer: {REFUSALS[method]}")
        return
    (cell,) = make_plan(suite_of(method), Filters(), None).cells
    (point,) = run_cell(cell, tmp_path).points
    assert point.status == "done", point.failure
    assert point.certificate is not None
    assert point.certificate.passed


def network() -> tuple[nn.Module, dict[str, object]]:
    torch.manual_seed(0)
    made = transformer((1, 8, 8), 10).eval()
    return made, {site.name: site for site in find_sites(made, IMAGES)}


class Fixed(Gate):
    """Gates per image or for all, as they are told."""

    def __init__(self, values: Tensor) -> None:
        super().__init__(values.shape[-1])
        self.values = values

    def draw(self, training: bool, batch: int) -> Tensor:
        return self.values


@pytest.mark.parametrize("name", ["up", "attention.value"])
def test_a_gate_for_each_image_does_what_a_gate_for_all_does(name: str) -> None:
    made, sites = network()
    site: object = sites[name]
    values = torch.rand(site.size)  # type: ignore[attr-defined]
    outputs = []
    for gate in (Fixed(values), Fixed(values.expand(len(IMAGES), -1))):
        placement = Placement(made, [site], {name: gate})  # type: ignore[list-item]
        outputs.append(made(IMAGES))
        placement.remove()
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0], made(IMAGES))


def test_sensitivities_in_front_of_the_readers_fold() -> None:
    made, sites = network()
    sensitivities = Sensitivities(made, list(sites.values()))  # type: ignore[arg-type]
    assert {site.name for site in sensitivities.sites} == {"attention.value", "up"}
    with torch.no_grad():
        for s in sensitivities.values.values():
            s.uniform_(0, 2)
    expected = made(IMAGES)
    sensitivities.fold()
    torch.testing.assert_close(made(IMAGES), expected)


class FlatTokens(nn.Module):
    """Tokens laid side by side: the features of one unit are not neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Linear(8, 6), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x[:, 0]).flatten(1))


def test_flattened_tokens_take_no_sensitivity() -> None:
    made = FlatTokens()
    assert not any(takes_gate(site) for site in find_sites(made, IMAGES))


@pytest.mark.parametrize("kind", ["full", "lower-bound", "local"])
def test_neuron_sensitivities_are_of_units_and_not_of_tokens(kind: str) -> None:
    """A unit that nobody reads has none; `local` follows the mean of the unit."""
    made, _ = network()
    with torch.no_grad():
        made.get_parameter("down.weight")[:, 3] = 0
        made.get_parameter("up.bias")[5] = -100
    probe = SensitivityProbe(made, ["up"], kind)  # type: ignore[arg-type]
    found = probe.measure(made(IMAGES))["up"]
    assert found.shape == (24,)
    if kind == "local":
        assert found[5] == 0
        assert found.sum() > 0
    else:
        assert found[3] == 0
        assert found[5] == 0
        assert int((found > 0).sum()) > 12  # a few ReLUs are dead on these images
