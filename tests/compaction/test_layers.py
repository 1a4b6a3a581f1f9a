"""Layer actions: merge, linearise, drop."""

from __future__ import annotations

import pytest
import torch
from small_networks import Residual, check, images, off, plan_of, randomise, shapes
from torch import Tensor, nn

from bench.compaction import apply_architecture, compact, masked_reference

EXAMPLE = images(3, 3, 8, 8)


def linears(bias: bool = True, middle: nn.Module | None = None) -> nn.Sequential:
    network = nn.Sequential(
        nn.Flatten(),
        nn.Linear(192, 5, bias=bias),
        middle or nn.Dropout(),
        nn.Linear(5, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 2),
    )
    randomise(network)
    return network


def convolutions(one: nn.Conv2d, two: nn.Conv2d) -> nn.Sequential:
    network = nn.Sequential(one, two, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
    randomise(network)
    return network


@pytest.mark.parametrize("bias", [True, False])
def test_merge_of_linear_layers(bias: bool) -> None:
    network = linears(bias)
    plan = plan_of([("merge", ("1", "3"))], **{"1": off(5, 0), "3": off(6, 2)})
    result = check(network, plan, EXAMPLE)
    assert result.certificate.difference_float64 < 1e-13
    assert shapes(result.network)["3.weight"] == (5, 192)
    assert ("3.bias" in shapes(result.network)) == bias
    assert "1.weight" not in shapes(result.network)
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE)
    assert shapes(rebuilt) == shapes(result.network)
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt.eval()(EXAMPLE), result.network(EXAMPLE))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2), nn.Conv2d(4, 6, 1, stride=2)),
        (nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular", bias=False), nn.Conv2d(4, 6, 1)),
        (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, stride=2, bias=False)),
        (nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 6, 3, padding=1)),
        (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")),
        (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1)),
    ],
)
def test_merge_of_convolutions(one: nn.Conv2d, two: nn.Conv2d) -> None:
    result = check(convolutions(one, two), plan_of([("merge", ("0", "1"))]), EXAMPLE)
    assert isinstance(result.network.get_submodule("0"), nn.Identity)
    assert result.certificate.difference_float64 < 1e-13


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1)),
        (nn.Conv2d(3, 4, 1, stride=2), nn.Conv2d(4, 6, 3)),
        (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)),
        (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1, padding=1)),
        (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1, padding=1, padding_mode="reflect")),
        (nn.Conv2d(3, 4, 1, padding=(0, 2), padding_mode="circular"), nn.Conv2d(4, 6, 3)),
        (nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 1, groups=2)),
    ],
)
def test_merge_that_would_not_be_exact(one: nn.Conv2d, two: nn.Conv2d) -> None:
    with pytest.raises(ValueError, match=r"cannot be merged exactly|have groups"):
        compact(convolutions(one, two), plan_of([("merge", ("0", "1"))]), EXAMPLE)


@pytest.mark.parametrize(
    ("network", "layers", "message"),
    [
        (linears(middle=nn.ReLU()), ("1", "3"), "lies between '1' and '3'"),
        (linears(), ("1", "5"), "lies between '1' and '5'"),
        (linears(), ("3", "1"), "lies between '3' and '1'"),
        (linears(), ("1",), "two layers can be merged, not 1"),
        (linears(), ("1", "7"), "'7' is no layer that the network calls exactly once"),
        (Residual(), ("conv2", "fc"), "lies between 'conv2' and 'fc'"),
    ],
)
def test_merge_of_layers_that_do_not_follow(
    network: nn.Module, layers: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compact(network, plan_of([("merge", layers)]), EXAMPLE)


@pytest.mark.parametrize("named", ["1", "2"])
@pytest.mark.parametrize("activation", [nn.ReLU(inplace=True), nn.Sigmoid()])
def test_linearise_then_merge(named: str, activation: nn.Module) -> None:
    network = linears(middle=activation)
    changed = check(network, plan_of([("linearise", (named,))]), EXAMPLE)
    assert isinstance(changed.network.get_submodule("2"), nn.Identity)
    with torch.no_grad():
        assert not torch.allclose(changed.network(EXAMPLE), network.eval()(EXAMPLE))
    merged = check(network, plan_of([("linearise", (named,)), ("merge", ("1", "3"))]), EXAMPLE)
    assert shapes(merged.network)["3.weight"] == (6, 192)
    assert [change.kind for change in merged.architecture.layer_changes] == ["linearise", "merge"]


def test_linearise_through_a_normalisation() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    randomise(network)
    result = check(network, plan_of([("linearise", ("0",))], **{"0": off(4, 1)}), EXAMPLE)
    assert isinstance(result.network.get_submodule("2"), nn.Identity)


def test_linearise_needs_a_module_of_its_own() -> None:
    with pytest.raises(ValueError, match="is no module of its own"):
        compact(randomise(Residual()), plan_of([("linearise", ("conv1",))]), EXAMPLE)
    with pytest.raises(ValueError, match="no activation follows '5'"):
        compact(linears(), plan_of([("linearise", ("5",))]), EXAMPLE)


@pytest.mark.parametrize("layers", [("bn2",), ("conv1", "bn1", "conv2", "bn2")])
@pytest.mark.parametrize("shortcut", [False, True])
def test_drop_a_branch(layers: tuple[str, ...], shortcut: bool) -> None:
    network = randomise(Residual(shortcut))
    result = check(network, plan_of([("drop", layers)]), EXAMPLE)
    assert not {"conv1.weight", "bn1.weight", "conv2.weight", "bn2.weight"} & shapes(result.network).keys()
    larger = images(2, 3, 11, 13)
    torch.testing.assert_close(
        result.network(larger), masked_reference(network, plan_of([("drop", layers)]), EXAMPLE)(larger)
    )
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE)
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt.eval()(EXAMPLE), result.network(EXAMPLE))


def test_drop_a_branch_and_units() -> None:
    network = randomise(Residual())
    result = check(network, plan_of([("drop", ("bn2",))], stem=off(6, 0, 3), conv1=off(5, 1)), EXAMPLE)
    assert shapes(result.network) == shapes(apply_architecture(network, result.architecture, EXAMPLE))
    assert result.architecture.kept == {"stem": [1, 2, 4, 5]}
    assert result.network(EXAMPLE[:1]).shape == (1, 4)


class PreActivation(nn.Module):
    """The branch rectifies in place what its first layer gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn, self.relu = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU(inplace=True)
        self.conv, self.fc = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((x + self.conv(self.relu(self.bn(x)))).mean((2, 3)))


def test_drop_a_branch_that_works_in_place() -> None:
    network = randomise(PreActivation())
    result = check(network, plan_of([("drop", ("conv",))], stem=off(6, 2)), EXAMPLE)
    assert result.certificate.removed_units == 1


def test_drop_the_shortcut() -> None:
    result = check(randomise(Residual(shortcut=True)), plan_of([("drop", ("shortcut.1",))]), EXAMPLE)
    assert not any(name.startswith("shortcut") for name in shapes(result.network))


def test_drop_what_is_no_branch() -> None:
    network = randomise(Residual())
    for layers, message in (
        (("conv2",), "does not go into a sum alone"),
        (("stem", "bn2"), "'stem' is not of the branch"),
        ((), "needs a layer"),
    ):
        with pytest.raises(ValueError, match=message):
            compact(network, plan_of([("drop", layers)]), EXAMPLE)


def test_merge_when_the_product_feeds_a_constant() -> None:
    """Merging makes rows that read nothing: their outputs are biases, and fold."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.three = nn.Linear(192, 3), nn.Linear(3, 4), nn.Linear(4, 2, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.three(torch.sigmoid(self.two(self.one(x.flatten(1)))))

    network = randomise(Net())
    with torch.no_grad():
        network.get_parameter("two.weight")[1] = 0.0
    result = check(network, plan_of([("merge", ("one", "two"))]), EXAMPLE)
    assert result.architecture.kept == {"two": [0, 2, 3]}
    assert result.architecture.added_biases == ("three",)
