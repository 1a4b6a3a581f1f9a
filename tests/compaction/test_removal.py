"""Every trap of removal in a network small enough to see through."""

from __future__ import annotations

import pytest
import torch
import torchvision
from small_networks import Residual, check, images, off, plan_of, random_plan, randomise, shapes
from torch import Tensor, nn

from bench.compaction import Architecture, apply_architecture, compact, find_sites, masked_reference
from methods.base import SparsityPlan

EXAMPLE = images(4, 3, 8, 8)


def kill_weights(layer: nn.Module, *units: int) -> None:
    """Zero rows, as a method leaves them that never heard of normalisation."""
    assert isinstance(layer, nn.Conv2d | nn.Linear)
    with torch.no_grad():
        layer.weight[list(units)] = 0.0


def net(*layers: nn.Module) -> nn.Sequential:
    network = nn.Sequential(*layers)
    randomise(network)
    return network


def test_empty_plan_changes_nothing() -> None:
    network = net(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)
    )
    result = check(network, SparsityPlan(), EXAMPLE)
    assert result.certificate.removed_units == 0
    assert shapes(result.network) == shapes(network)
    assert [type(m) for m in result.network.modules()] == [type(m) for m in network.modules()]
    assert result.network.state_dict().keys() == network.state_dict().keys()


def test_live_shift_behind_zero_weights_is_kept_before_padding() -> None:
    network = net(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 5, 3, padding=1),
        nn.Flatten(),
        nn.Linear(180, 2),
    )
    network[1].bias.data.fill_(3.0)  # type: ignore[union-attr, operator]
    kill_weights(network[0], 1, 2)
    result = check(network, SparsityPlan(), EXAMPLE)
    assert result.certificate.removed_units == 0
    assert result.certificate.kept_constant_units == 2
    switched_off = check(network, plan_of(**{"0": off(4, 1, 2)}), EXAMPLE)
    assert switched_off.certificate.removed_units == 2
    assert switched_off.certificate.kept_constant_units == 0
    assert switched_off.architecture.kept["0"] == [0, 3]


def test_constant_is_folded_where_nothing_is_padded() -> None:
    network = net(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.Sigmoid(),
        nn.Conv2d(4, 5, 3, stride=2, dilation=1, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(20, 2),
    )
    kill_weights(network[0], 0, 2)
    result = check(network, SparsityPlan(), EXAMPLE)
    assert result.certificate.removed_units == 2
    assert result.architecture.added_biases == ("3",)
    assert result.network[3].bias is not None  # type: ignore[index]
    assert result.certificate.difference_float64 < 1e-14


@pytest.mark.parametrize(
    ("padding", "mode", "kernel", "removed"),
    [
        (0, "zeros", 3, 1),
        (1, "zeros", 3, 0),
        (1, "zeros", 1, 0),
        ("same", "zeros", 3, 0),
        ("same", "zeros", 1, 1),
        ("valid", "zeros", 3, 1),
        (1, "circular", 3, 1),
        (2, "reflect", 3, 1),
        ("same", "replicate", 3, 1),
        ((0, 1), "zeros", 3, 0),
    ],
)
def test_sigmoid_of_a_unit_that_is_off(padding: int | str, mode: str, kernel: int, removed: int) -> None:
    """sigmoid(0) = 1/2: a unit that is off still feeds a constant."""
    network = net(
        nn.Conv2d(3, 4, 3),
        nn.Sigmoid(),
        nn.Conv2d(4, 5, kernel, padding=padding, padding_mode=mode),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(5, 2),
    )
    result = check(network, plan_of(**{"0": off(4, 3)}), EXAMPLE)
    assert result.certificate.removed_units == removed
    assert result.certificate.kept_constant_units == 1 - removed


@pytest.mark.parametrize(
    ("pool", "removed"),
    [
        (nn.MaxPool2d(3, padding=1), 1),
        (nn.AvgPool2d(2), 1),
        (nn.AvgPool2d(3, padding=1), 0),
        (nn.AvgPool2d(3, padding=1, count_include_pad=False), 1),
        (nn.AvgPool2d(4, stride=3, ceil_mode=True), 1),
        (nn.AvgPool2d(2, divisor_override=3), 0),
        (nn.AdaptiveMaxPool2d(2), 1),
        (nn.ZeroPad2d(1), 0),
    ],
)
def test_constants_through_pooling(pool: nn.Module, removed: int) -> None:
    network = net(nn.Conv2d(3, 4, 3), nn.Sigmoid(), pool, nn.Conv2d(4, 5, 1), nn.Flatten())
    with torch.no_grad():
        features = network(EXAMPLE).shape[1]
    network.append(nn.Linear(features, 2))
    assert check(network, plan_of(**{"0": off(4, 1)}), EXAMPLE).certificate.removed_units == removed


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, padding=1), nn.ZeroPad2d(1), nn.MaxPool2d(3, padding=1)])
def test_zeros_go_through_any_pooling(pool: nn.Module) -> None:
    network = net(nn.Conv2d(3, 4, 3), nn.ReLU(), pool, nn.Conv2d(4, 5, 3, padding=1), nn.AdaptiveAvgPool2d(1))
    network.extend([nn.Flatten(), nn.Linear(5, 2)])
    assert check(network, plan_of(**{"0": off(4, 1)}), EXAMPLE).certificate.removed_units == 1


def test_flatten_repeats_every_channel() -> None:
    network = net(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 6), nn.ReLU(), nn.Linear(6, 2)
    )
    result = check(network, plan_of(**{"0": off(4, 0, 2), "3": off(6, 5)}), EXAMPLE)
    assert shapes(result.network)["3.weight"] == (5, 2 * 36)
    columns = network[3].weight.view(6, 4, 36)[:5, [1, 3]].reshape(5, 72)  # type: ignore[union-attr, operator]
    assert torch.equal(result.network[3].weight, columns)  # type: ignore[index, union-attr]


def test_unread_units_die_backwards_through_layers() -> None:
    """The only reader of unit 1 of the first layer is unit 0 of the second, which nobody reads."""
    network = net(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    masks = {f"{name}.weight": torch.ones(network[name].weight.shape).bool() for name in (3, 5)}  # type: ignore[arg-type, union-attr]
    masks["3.weight"][1:, 1] = False
    masks["5.weight"][:, 0] = False
    result = check(network, SparsityPlan(weight_masks=masks), EXAMPLE)
    assert result.architecture.kept == {"1": [0, 2, 3], "3": [1, 2, 3]}


def test_units_without_input_become_constants_and_fold() -> None:
    network = net(
        nn.Flatten(), nn.Linear(192, 3), nn.ReLU(), nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2, bias=False)
    )
    masks = {"3.weight": torch.ones(4, 3).bool()}
    masks["3.weight"][2, [0, 1]] = False
    result = check(network, SparsityPlan({"1": off(3, 2)}, masks), EXAMPLE)
    assert result.architecture.kept == {"1": [0, 1], "3": [0, 1, 3]}
    assert result.architecture.added_biases == ("5",)


def test_a_whole_layer_off_collapses_and_says_so() -> None:
    network = net(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Flatten()
    )
    network.append(nn.Linear(80, 2))
    result = check(network, plan_of(**{"3": off(5, *range(5))}), EXAMPLE)
    assert result.collapsed == ("0", "3")
    assert result.architecture.kept == {"0": [0], "3": [0]}
    with torch.no_grad():
        logits = result.network(EXAMPLE)
    assert torch.equal(logits, logits[:1].expand_as(logits))


def test_residual_needs_all_producers_zero() -> None:
    network = randomise(Residual())
    with torch.no_grad():  # only one producer of the stream is zero at unit 1, both at unit 4
        for bn, units in (("bn0", [4]), ("bn2", [1, 4])):
            norm = network.get_submodule(bn)
            norm.weight[units], norm.bias[units] = 0.0, 0.0  # type: ignore[index, operator]
    result = check(network, SparsityPlan(), EXAMPLE)
    assert result.architecture.kept == {"stem": [0, 1, 2, 3, 5], "conv1": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("shortcut", [False, True])
def test_residual_random_plans(shortcut: bool) -> None:
    network = randomise(Residual(shortcut))
    for seed in range(5):
        plan = random_plan(network, EXAMPLE, seed)
        result = check(network, plan, EXAMPLE)
        for site, kept in plan.kept.items():
            left = set(result.architecture.kept[site])
            assert left <= set(kept.nonzero().flatten().tolist()) or site in result.collapsed


def test_depthwise_is_coupled() -> None:
    network = net(
        nn.Conv2d(3, 6, 1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU6(),
        nn.Conv2d(6, 4, 1),
        nn.Flatten(),
        nn.Linear(256, 2),
    )
    (site, _) = find_sites(network, EXAMPLE)
    assert (site.producers, site.ends, site.kind) == (("0", "3"), ("1", "4"), "inner")
    result = check(network, plan_of(**{"0": off(6, 1, 2)}), EXAMPLE)
    assert shapes(result.network)["3.weight"] == (4, 1, 3, 3)
    assert result.network[3].groups == 4  # type: ignore[index, union-attr]
    kill_weights(network[3], 0)  # the second producer alone: a constant, which the 1×1 convolution takes
    assert check(network, SparsityPlan(), EXAMPLE).architecture.kept["0"] == [1, 2, 3, 4, 5]


def test_groups_stay_of_one_size() -> None:
    network = net(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 9, 3, groups=3, padding=1), nn.ReLU(), nn.Flatten()
    )
    network.append(nn.Linear(9 * 36, 2))
    even = check(network, plan_of(**{"0": off(6, 0, 3, 5), "2": off(9, 1, 4, 8)}), EXAMPLE)
    assert shapes(even.network)["2.weight"] == (6, 1, 3, 3)
    uneven = check(network, plan_of(**{"0": off(6, 0), "2": off(9, 1)}), EXAMPLE)
    assert uneven.certificate.removed_units == 0
    whole = check(network, plan_of(**{"0": off(6, 2, 3), "2": off(9, 3, 4, 5)}), EXAMPLE)
    assert shapes(whole.network)["2.weight"] == (6, 2, 3, 3)
    assert whole.network[2].groups == 2  # type: ignore[index, union-attr]


def test_depthwise_multiplier() -> None:
    network = net(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 8, 3, groups=4), nn.ReLU(), nn.Flatten())
    network.append(nn.Linear(8 * 16, 2))
    result = check(network, plan_of(**{"0": off(4, 1), "2": off(8, 2, 3)}), EXAMPLE)
    assert shapes(result.network)["2.weight"] == (6, 1, 3, 3)
    alone = check(network, plan_of(**{"0": off(4, 1)}), EXAMPLE)  # its two outputs are their biases, and fold
    assert alone.architecture.kept == {"0": [0, 2, 3], "2": [0, 1, 4, 5, 6, 7]}


class Concatenating(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 5, 1)
        self.bn, self.after = nn.BatchNorm2d(9), nn.Conv2d(9, 4, 1, bias=False)
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        out = self.after(torch.relu(self.bn(torch.cat([left, right], dim=1))))
        return self.fc(torch.cat((out, left), 1).mean([-1, -2]))


def test_concatenation() -> None:
    network = randomise(Concatenating())
    kinds = {site.name: (site.size, site.kind) for site in find_sites(network, EXAMPLE)}
    assert kinds == {"left": (4, "stream"), "right": (5, "stream"), "after": (4, "stream")}
    plan = plan_of(left=off(4, 0), right=off(5, 1, 4), after=off(4, 2))
    result = check(network, plan, EXAMPLE)
    assert result.certificate.removed_units == 4
    assert shapes(result.network)["bn.weight"] == (6,)
    assert result.architecture.added_biases == ("after",)  # the shift of the norm behind the concatenation


class Squeezing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.squeeze, self.excite = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)
        self.after = nn.Conv2d(6, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).relu()
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        return self.fc(self.after(2.0 * (x * gate)).mean((2, 3)))


def test_squeeze_and_excitation() -> None:
    network = randomise(Squeezing())
    result = check(network, plan_of(conv=off(6, 0, 5), squeeze=off(2, 1)), EXAMPLE)
    assert result.certificate.removed_units == 3
    kill_weights(network.conv, 2)
    with torch.no_grad():
        network.conv.bias[2] = 0.0  # type: ignore[index, operator]
    assert check(network, SparsityPlan(), EXAMPLE).architecture.kept["conv"] == [0, 1, 3, 4, 5]


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_torchvision(name: str) -> None:
    network = randomise(torchvision.models.get_model(name, weights=None, num_classes=10))
    example = images(1, 3, 32, 32)
    result = compact(network, random_plan(network, example, share=0.7), example)
    assert result.certificate.passed, result.certificate
    assert result.pinned == ()
    again = compact(result.network, SparsityPlan(), example)
    assert again.certificate.removed_units == 0


def test_float64_network_and_its_mode() -> None:
    network = randomise(Residual()).double().train()
    result = compact(network, plan_of(conv1=off(5, 0)), EXAMPLE)
    assert result.certificate.passed
    assert network.training
    assert not result.network.training
    assert {p.dtype for p in result.network.parameters()} == {torch.float64}
    frozen = randomise(Residual())
    frozen.get_parameter("conv2.weight").requires_grad_(False)
    thin = compact(frozen, plan_of(conv1=off(5, 0)), EXAMPLE).network
    assert {n for n, p in thin.named_parameters() if not p.requires_grad} == {"conv2.weight"}


def test_a_network_that_is_not_finite_gets_no_certificate() -> None:
    network = randomise(Residual())
    with torch.no_grad():
        network.get_parameter("fc.weight")[0, 0] = float("nan")
    result = compact(network, plan_of(conv1=off(5, 0)), EXAMPLE)
    assert not result.certificate.passed
    assert "float64" in result.certificate.reason


def test_architecture_makes_the_same_shapes() -> None:
    network = randomise(Residual(shortcut=True))
    plan = random_plan(network, EXAMPLE, seed=3)
    result = compact(network, plan, EXAMPLE)
    thin = apply_architecture(network, result.architecture, EXAMPLE)
    assert thin.training
    assert shapes(thin) == shapes(result.network)
    assert torch.equal(
        thin.get_parameter("fc.weight"),
        network.get_parameter("fc.weight")[:, result.architecture.kept["stem"]],
    )
    thin(EXAMPLE).sum().backward()
    assert all(p.grad is not None for p in thin.parameters())


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (Architecture(kept={"stm": [0]}), "did you mean 'stem'"),
        (Architecture(kept={"stem": []}), "leaves 'stem' without a unit"),
        (Architecture(kept={"stem": [0, 6]}), "site 'stem' must ascend below 6"),
        (Architecture(kept={"stem": [0, 6]}), "must ascend below 6"),
        (Architecture(kept={"stem": [1, 0]}), "must ascend"),
        (Architecture(added_biases=("fc",)), "'fc' is no layer that a bias can be added to"),
    ],
)
def test_architectures_that_do_not_fit(architecture: Architecture, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply_architecture(Residual(), architecture, EXAMPLE)


def test_unbalanced_groups_make_no_architecture() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(256, 2))
    with pytest.raises(ValueError, match="groups of different size"):
        apply_architecture(network, Architecture(kept={"0": [0, 1, 2]}), EXAMPLE)


def test_masked_reference_is_the_network_where_nothing_is_off() -> None:
    network = randomise(Residual()).eval()
    reference = masked_reference(network, SparsityPlan(), EXAMPLE)
    assert reference is not network
    assert torch.equal(reference(EXAMPLE), network(EXAMPLE))


def test_slopes_that_the_plan_masks() -> None:
    """Units that give constants below zero, through a PReLU of which every other slope is masked."""
    network = nn.Sequential(
        nn.Conv2d(2, 6, 1), nn.PReLU(6), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    )
    network = randomise(network).eval()  # type: ignore[assignment]
    with torch.no_grad():
        network[0].bias.fill_(-1.0)
    constant = torch.ones(6, 2, 1, 1, dtype=torch.bool)
    constant[:4] = False
    slopes = torch.arange(6) % 2 == 0
    plan = SparsityPlan(weight_masks={"0.weight": constant, "1.weight": slopes})
    result = check(network, plan, images(2, 2, 4, 4))
    assert len(result.architecture.kept["0"]) == 2


class ChannelsLast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).contiguous(memory_format=torch.channels_last)
        return self.fc(torch.relu(x).mean((2, 3)))


def test_a_copy_in_another_layout() -> None:
    result = check(randomise(ChannelsLast()), plan_of(conv=off(6, 1, 4)), EXAMPLE)
    assert shapes(result.network)["conv.weight"] == (4, 3, 1, 1)


class Scaled(nn.Module):
    """Images in numbers up to 255; a view that names the number of channels, so that the code has to be rewritten."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.tensor([1 + 2j, 3 - 1j]))
        self.conv, self.fc = nn.Conv2d(3, 6, 1), nn.Linear(6, 3)
        self.register_buffer("mean", torch.tensor([123.0, 117.0, 104.0]).view(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = (x - self.mean / 255) * self.phase.abs().sum()  # type: ignore[operator]
        x = torch.sigmoid(self.conv(x))
        return self.fc(x.view(-1, 6, 64).mean(2))


def test_what_the_code_computes_of_buffers_is_not_rounded_and_complex_parameters_name_no_precision() -> None:
    result = check(randomise(Scaled()), plan_of(conv=off(6, 1, 4)), EXAMPLE)
    assert result.certificate.difference_float64 < 1e-14
    assert result.network.get_parameter("conv.weight").dtype is torch.float32
    assert result.network.get_parameter("phase").dtype is torch.complex64


def test_constants_fold_into_biases_of_half_the_precision() -> None:
    network = net(nn.Conv2d(3, 12, 3), nn.Sigmoid(), nn.Conv2d(12, 12, 3), nn.Flatten(), nn.Linear(192, 5))
    network.bfloat16()
    certificate = compact(network, random_plan(network, EXAMPLE), EXAMPLE).certificate
    assert certificate.passed, certificate
    assert certificate.difference_float64 < 1e-14
    assert 1e-4 < certificate.difference_float32 < torch.finfo(torch.bfloat16).eps
