"""What the code does beside calling layers: pieces read as one, sizes of one tensor in calls of another."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from small_networks import Coded, check, images, off, parameters, plan_of, randomise, shapes
from torch import Tensor, fx, nn

from bench.compaction import apply_architecture, compact, find_sites, masked_reference
from bench.networks import HeadProducts
from methods.base import SparsityPlan

EXAMPLE = images(2, 3, 8, 8)


def halves(network: nn.Module) -> SparsityPlan:
    """Every second unit of every site off."""
    return SparsityPlan(kept={s.name: torch.arange(s.size) % 2 > 0 for s in find_sites(network, EXAMPLE)})


@pytest.mark.parametrize(
    "joined",
    [
        lambda x: torch.stack(x.chunk(2, 1)).sum(0),
        lambda x: torch.cat(x.split([4, 4], 1)[::-1], 1),
        lambda x: torch.stack(x.unbind(1), 1),
    ],
)
def test_several_tensors_that_are_read_as_one(joined: Callable[[Tensor], Tensor]) -> None:
    channels = joined(torch.zeros(2, 8, 8, 8)).shape[1]

    def code(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(m.after(joined(m.conv(m.stem(x)).relu())).relu().mean((2, 3)))

    network = Coded(
        code,
        stem=nn.Conv2d(3, 6, 1),
        conv=nn.Conv2d(6, 8, 1),
        after=nn.Conv2d(channels, 5, 1),
        fc=nn.Linear(5, 3),
    )
    randomise(network)
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["stem", "after"]
    result = check(network, halves(network), EXAMPLE)
    assert result.certificate.removed_units == 6
    assert any("several tensors that are read as one" in what for what in result.pinned)
    assert parameters(check(network, SparsityPlan(), EXAMPLE).network) == parameters(network)


def excited(m: nn.Module, x: Tensor) -> Tensor:
    """As squeeze and excitation is published."""
    b, c, _, _ = x.size()
    return x * m.up(m.down(F.adaptive_avg_pool2d(x, 1).view(b, c)).relu()).sigmoid().view(b, c, 1, 1)


def squeezed_branch(m: nn.Module, x: Tensor) -> Tensor:
    x = m.conv(x).relu()
    return m.fc((x + m.project(excited(m, m.expand(x).relu()))).relu().mean((2, 3)))


@pytest.mark.parametrize("stream", [(), (1, 3, 6)])
@pytest.mark.parametrize("drop", [True, False])
def test_a_branch_goes_with_the_sizes_that_are_read_in_it(drop: bool, stream: tuple[int, ...]) -> None:
    network = Coded(
        squeezed_branch,
        conv=nn.Conv2d(3, 8, 1),
        expand=nn.Conv2d(8, 12, 1),
        down=nn.Linear(12, 2),
        up=nn.Linear(2, 12),
        project=nn.Conv2d(12, 8, 1),
        fc=nn.Linear(8, 3),
    )
    randomise(network)
    plan = plan_of([("drop", ("project",))] if drop else (), conv=off(8, *stream))
    if not drop:
        plan = SparsityPlan(kept={**plan.kept, "expand": torch.zeros(12, dtype=torch.bool)})
    result = check(network, plan, EXAMPLE)
    shift = set() if drop else {"shift_project.bias"}
    assert shapes(result.network).keys() == {"conv.weight", "conv.bias", "fc.weight", "fc.bias"} | shift
    assert shapes(result.network)["fc.weight"] == (3, 8 - len(stream))


def test_an_emptied_layer_stays_where_its_size_is_read() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        y = m.conv(x).relu()
        z = m.other(x).relu().view(y.size(0), -1)
        return m.fc(torch.cat([y.flatten(1), z], 1))

    network = Coded(code, conv=nn.Conv2d(3, 4, 1), other=nn.Conv2d(3, 4, 1), fc=nn.Linear(512, 3))
    randomise(network)
    check(network, plan_of(conv=off(4, 0, 1, 2, 3), other=off(4, 2)), EXAMPLE)


SIZED: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda x, y: y.flatten(2).reshape(y.shape),
    lambda x, y: y * y.mean((2, 3)).sigmoid()[:, :, None, None].expand(y.shape),
    lambda x, y: y.flatten(2).view(y.shape[:2] + y.flatten(2).shape[2:]).mean(2)[:, :, None, None] * y,
    lambda x, y: y + x.flatten(2)[:, :, : y.shape[1]].sum((1, 2)).view(-1, 1, 1, 1).expand(y.size()),
    lambda x, y: y * F.pad(x, (y.size(dim=-3), 0))[:, :1, :, 8:].expand(-1, 8, -1, -1).sigmoid(),
    lambda x, y: y.permute(0, 2, 3, 1).reshape(y.size(0), -1, y.size(1)).transpose(1, 2).reshape(y.size()),
]


@pytest.mark.parametrize("number", range(len(SIZED)))
def test_the_size_of_one_tensor_in_a_call_of_another(number: int) -> None:
    """The masked network has all its channels, on every size of image."""

    def code(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(m.after(SIZED[number](x, m.conv(x).relu())).relu().mean((2, 3)))

    network = Coded(code, conv=nn.Conv2d(3, 8, 1), after=nn.Conv2d(8, 6, 1), fc=nn.Linear(6, 3))
    randomise(network)
    plan = halves(network)
    result = check(network, plan, EXAMPLE)
    larger = images(3, 3, 12, 10)
    torch.testing.assert_close(result.network(larger), masked_reference(network, plan, EXAMPLE)(larger))
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE).eval()
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt(EXAMPLE), result.network(EXAMPLE))
    assert compact(result.network, SparsityPlan(), EXAMPLE).certificate.passed


@pytest.mark.parametrize("copied", [False, True])
def test_a_view_that_was_taken_before_its_tensor_is_overwritten(copied: bool) -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x)
        view = (x.clone() if copied else x).flatten(1)
        torch.sigmoid_(x)
        return m.fc(view)

    network = Coded(code, conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(256, 3))
    randomise(network)
    result = check(network, halves(network), EXAMPLE)
    assert result.certificate.removed_units == (2 if copied else 0)
    assert result.pinned == (() if copied else ("sigmoid_: overwrites a tensor that is read again",))


class Scale(nn.Module):
    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.gamma, self.is_flat = nn.Parameter(torch.rand(*shape)), len(shape) == 1

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma.view(1, -1, 1, 1) if self.is_flat else self.gamma)


class ScaledBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gamma = nn.Conv2d(8, 8, 1), nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.conv(x).relu()


NORM = nn.BatchNorm2d(8, affine=False)


class Buffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Own(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


class Named(nn.Conv2d):
    """As its base in all but what it is given."""

    def __init__(self, channels: int) -> None:
        super().__init__(3, channels, 1)


class NamedLinear(nn.Linear):
    pass


class Multiplied(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 1)
        product = first * second.sigmoid()
        return torch.cat([product, product.relu()], 1)


def tied() -> nn.Module:
    blocks = ScaledBlock(), ScaledBlock()
    blocks[1].gamma = blocks[0].gamma
    return nn.Sequential(*blocks)


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        (tied(), "layer.0.gamma: a parameter that is used more than once"),
        (Scale(8, 1, 1), "layer.gamma: a parameter of Scale, a module of its own"),
        (Scale(8, 8, 8), "layer.gamma: a parameter that is not one number per channel"),
        (Scale(8), "layer.gamma: a parameter of Scale, a module of its own"),
        (nn.Sequential(NORM, nn.ReLU(), NORM), "layer.0: BatchNorm2d used more than once"),
        (Buffer(), "layer.scale: a tensor that is no parameter"),
        (Multiplied(), "conv: channels that meet others of its own, or of other layers in part"),
        (nn.Sequential(nn.Flatten(2), nn.Conv1d(8, 8, 1), nn.Unflatten(2, (8, 8))), "layer.1: Conv1d"),
    ],
)
def test_what_pins_a_layer_is_named(layer: nn.Module, named: str) -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        return m.fc(m.layer(m.conv(x)).relu().mean((2, 3)))

    network = Coded(code, conv=nn.Conv2d(3, 8, 1), layer=layer, fc=nn.Linear(8, 3))
    randomise(network)
    assert find_sites(network, EXAMPLE) == []
    assert check(network, SparsityPlan(), EXAMPLE).pinned == (named,)


@pytest.mark.parametrize(
    ("layer", "named"), [(Own(3, 8, 1), "conv2d: conv2d"), (nn.Conv3d(2, 8, (3, 1, 1)), "0: Conv3d")]
)
def test_a_layer_that_reads_the_input_is_named(layer: nn.Module, named: str) -> None:
    example = EXAMPLE if isinstance(layer, nn.Conv2d) else images(2, 2, 3, 8, 8)
    network = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.Linear(512, 3))
    assert find_sites(network, example) == []
    assert [what[: len(named)] for what in check(network, SparsityPlan(), example).pinned] == [named]


def test_layers_of_derived_classes() -> None:
    network = nn.Sequential(
        Named(8), nn.ReLU(), nn.Flatten(), NamedLinear(512, 6), nn.ReLU(), nn.Linear(6, 3)
    )
    randomise(network)
    result = check(network, halves(network), EXAMPLE)
    assert result.certificate.removed_units == 7
    assert (type(result.network[0]), type(result.network[3])) == (Named, NamedLinear)  # type: ignore[index]
    nn.utils.parametrizations.spectral_norm(network[0])
    assert [site.name for site in find_sites(network, EXAMPLE)] == ["3"]


def test_what_pins_no_layer_more_is_not_named() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv((x - 1.0) / m.input_scale(x).sigmoid()).relu().mean((2, 3))
        return m.fc(x)

    network = Coded(code, conv=nn.Conv2d(3, 8, 1), input_scale=Scale(3, 1, 1), fc=nn.Linear(8, 3))
    randomise(network)
    assert "conv" in {site.name for site in find_sites(network, EXAMPLE)}
    assert check(network, SparsityPlan(), EXAMPLE).pinned == ()


def normalised(m: nn.Module, x: Tensor) -> Tensor:
    return m.fc(m.conv(x).relu().mean((2, 3)) / m.conv.out_channels)


def asserting(m: nn.Module, x: Tensor) -> Tensor:
    if m.conv.out_channels != 8:
        raise ValueError("eight channels are needed")
    return m.fc(m.conv(x).relu().mean((2, 3)))


def constant(m: nn.Module, x: Tensor) -> Tensor:
    return m.fc(m.conv(x).relu().mean((2, 3))) + torch.ones(3)


def to_no_effect(m: nn.Module, x: Tensor) -> Tensor:
    return m.fc(F.dropout(m.conv(x).relu().mean((2, 3)), 1 / m.conv.out_channels, m.training))


@pytest.mark.parametrize(
    ("code", "differs"), [(normalised, True), (asserting, True), (constant, False), (to_no_effect, False)]
)
def test_code_that_asks_a_layer_for_its_width(
    code: Callable[[nn.Module, Tensor], Tensor], differs: bool
) -> None:
    network = Coded(code, conv=nn.Conv2d(3, 8, 1), fc=nn.Linear(8, 3), spare=nn.Linear(2, 2))
    randomise(network)
    result = check(network, halves(network), EXAMPLE)
    assert result.certificate.removed_units == 4
    assert isinstance(result.network, fx.GraphModule) == differs
    assert isinstance(check(network, SparsityPlan(), EXAMPLE).network, Coded)
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE).eval()
    rebuilt.load_state_dict(result.network.state_dict())
    assert torch.equal(rebuilt(EXAMPLE), result.network(EXAMPLE))
    of_an_older_archive = result.architecture.model_copy(update={"own_code": None})
    alike = apply_architecture(network, of_an_older_archive, EXAMPLE).eval()
    assert isinstance(alike, fx.GraphModule) == (differs or code is to_no_effect)


def test_pieces_that_nobody_reads() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x).relu()
        x.view(-1, 2, 4, 64).transpose(1, 2)
        return m.fc(x.mean((2, 3)))

    network = Coded(code, conv=nn.Conv2d(3, 8, 1), fc=nn.Linear(8, 3))
    randomise(network)
    named = "transpose: channels on more than one axis, not read"
    assert check(network, halves(network), EXAMPLE).pinned == (named,)


def test_attention_whose_heads_are_used_twice() -> None:
    def code(m: nn.Module, x: Tensor) -> Tensor:
        x = m.conv(x).flatten(2).transpose(1, 2)
        return m.fc(m.heads(m.q2(x), m.k2(x), m.heads(m.q1(x), m.k1(x), m.v1(x))).mean(1))

    linear = {name: nn.Linear(8, 8) for name in ("q1", "k1", "v1", "q2", "k2")}
    heads = HeadProducts(2, 0.5)
    network = Coded(code, conv=nn.Conv2d(3, 8, 1), heads=heads, **linear, fc=nn.Linear(8, 3))
    randomise(network)
    assert "heads: HeadProducts used more than once" in check(network, halves(network), EXAMPLE).pinned
