"""A branch of a sum that gives the same for every input becomes one number per channel."""

from __future__ import annotations

import pytest
import torch
from small_networks import Residual, check, images, off, plan_of, randomise, shapes
from torch import Tensor, nn

from bench.compaction import Compacted, apply_architecture, compact, find_branches, masked_reference
from bench.compaction.own_layers import Shift
from methods.base import LayerAction, SparsityPlan

EXAMPLE = images(2, 3, 8, 8)


def rebuilds(network: nn.Module, result: Compacted) -> None:
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE).eval()
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt(EXAMPLE), result.network(EXAMPLE))


@pytest.mark.parametrize("shortcut", [False, True])
def test_an_emptied_residual_branch_goes(shortcut: bool) -> None:
    network = randomise(Residual(shortcut))
    result = check(network, plan_of(conv1=off(5, *range(5)), stem=off(6, 2)), EXAMPLE)
    assert result.collapsed == ()
    assert result.certificate.removed_units == 6
    kept = {"stem": [0, 1, 3, 4, 5]}
    assert result.architecture.kept == (kept | {"shortcut.0": list(range(6))} if shortcut else kept)
    assert [(c.kind, c.layers) for c in result.architecture.layer_changes] == [("shift", ("bn2",))]
    assert not {"conv1.weight", "bn1.weight", "conv2.weight", "bn2.weight"} & shapes(result.network).keys()
    # The shift of the branch's last norm, whose inputs are all zero, is what it gave.
    assert shapes(result.network)["shift_bn2.bias"] == (6 if shortcut else 5,)
    rebuilds(network, result)
    again = check(result.network, SparsityPlan(), EXAMPLE)
    assert shapes(again.network) == shapes(result.network)


def test_any_size_of_image() -> None:
    network = randomise(Residual())
    plan = plan_of(conv1=off(5, *range(5)))
    larger = images(2, 3, 11, 13)
    expected = masked_reference(network, plan, EXAMPLE)(larger)
    torch.testing.assert_close(compact(network, plan, EXAMPLE).network(larger), expected)


def test_the_shortcut_may_be_the_one_that_goes() -> None:
    network = randomise(Residual(shortcut=True))
    masks = {"shortcut.0.weight": torch.zeros(6, 6, 1, 1).bool()}
    result = check(network, SparsityPlan(weight_masks=masks), EXAMPLE)
    assert [c.layers for c in result.architecture.layer_changes] == [("shortcut.1",)]
    rebuilds(network, result)


class Deep(nn.Module):
    """Two blocks before their activations, the second with a block inside; a branch behind tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.one, self.two, self.inner = (nn.Conv2d(6, 4, 3, padding=1) for _ in range(3))
        self.last, self.middle = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1)
        self.end, self.relu = nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(inplace=True)
        self.up, self.down, self.fc = nn.Linear(6, 5), nn.Linear(5, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.rand(6, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.last(torch.relu(self.one(torch.relu(x))))
        y = torch.relu(self.two(torch.relu(x)))
        y = y + self.inner(x)
        x = self.relu(x + self.end(torch.relu(y)))
        out = self.down(torch.relu(self.up(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2)
        return self.fc((x + self.scale * out).mean((2, 3)))


def test_branches_of_all_kinds() -> None:
    network = randomise(Deep())
    with torch.no_grad():
        network.end.weight[:] = 0  # the outer branch of the second sum, an inner one in it
    result = check(network, plan_of(one=off(4, 0, 1, 2, 3), up=off(5, 0, 1, 2, 3, 4)), EXAMPLE)
    assert [c.layers for c in result.architecture.layer_changes] == [("last", "end", "down")]
    assert result.collapsed == ()
    assert sum(isinstance(module, Shift) for module in result.network.modules()) == 3
    assert set(shapes(result.network)) == {
        *(f"shift_{layer}.bias" for layer in ("last", "end", "down")),
        *("stem.weight", "stem.bias", "fc.weight", "fc.bias"),
    }
    rebuilds(network, result)


class ClassToken(nn.Module):
    """A token before those of the image, one block of an MLP on all, the classifier on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.rand(1, 1, 6))
        self.embed, self.up, self.down, self.fc = (
            nn.Linear(size, out) for size, out in ((3, 6), (6, 5), (5, 6), (6, 3))
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.embed(x)], 1)
        return self.fc((x + self.down(torch.relu(self.up(x))))[:, 0])


def test_a_branch_beside_a_stream_whose_axes_are_not_known() -> None:
    network, example = randomise(ClassToken()), images(2, 4, 3)
    result = compact(network, plan_of(up=off(5, 0, 1, 2, 3, 4)), example)
    assert result.certificate.passed, result.certificate
    assert [c.layers for c in result.architecture.layer_changes] == [("down",)]
    assert [site.name for site in find_branches(network, example)] == ["down"]
    dropped = check(network, plan_of([("drop", ("down",))]), example)
    assert not {"up.weight", "down.weight"} & shapes(dropped.network).keys()


def test_a_network_that_no_input_reaches_is_collapsed() -> None:
    network = randomise(Residual())
    result = check(network, plan_of(stem=off(6, *range(6)), conv1=off(5, *range(5))), EXAMPLE)
    assert "stem" in result.collapsed
    assert result.architecture.layer_changes == ()


def test_no_plan_asks_for_a_shift() -> None:
    plan = SparsityPlan(layer_actions=(LayerAction("shift", ("bn2",)),))
    with pytest.raises(ValueError, match="no plan can ask for it"):
        compact(randomise(Residual()), plan, EXAMPLE)
