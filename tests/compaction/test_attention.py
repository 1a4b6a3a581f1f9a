"""Attention: in parts it computes the same, and heads, widths of heads and whole branches go from it."""

from __future__ import annotations

import pytest
import torch
from small_networks import check, images, off, plan_of, random_plan, randomise, shapes
from torch import Tensor, nn

from bench.compaction import apply_architecture, compact, find_sites
from bench.networks import HeadProducts, separate_attention
from bench.networks._attention import separated

EXAMPLE = images(2, 3, 8, 8)
WIDTH, HEADS = 12, 3


class Transformer(nn.Module):
    """A layer of attention on patches, as in ViT."""

    def __init__(self, bias: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, 4, 4)
        self.norm = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, bias=bias)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        y, _ = self.attention(y, y, y, need_weights=False)
        return self.head((x + y).mean(1))


def transformer(bias: bool = True) -> nn.Module:
    network = separate_attention(Transformer(bias))
    return randomise(network).eval()


def of_head(*heads: int) -> Tensor:
    """A mask that is off in whole heads."""
    size = WIDTH // HEADS
    return off(WIDTH, *(head * size + k for head in heads for k in range(size)))


def products(network: nn.Module) -> HeadProducts:
    found = network.get_submodule("attention.products")
    assert isinstance(found, HeadProducts)
    return found


@pytest.mark.parametrize("bias", [True, False])
def test_in_parts_it_computes_the_same_also_in_training(bias: bool) -> None:
    joint = randomise(Transformer(bias)).double()
    nn.init.normal_(joint.attention.in_proj_weight)  # type: ignore[arg-type]
    parts = Transformer(bias).double()
    parts.load_state_dict(joint.state_dict())
    separate_attention(parts)
    x = EXAMPLE.double()
    for training in (False, True):
        torch.testing.assert_close(parts.train(training)(x), joint.train(training)(x), rtol=1e-12, atol=1e-12)
    sizes = [sum(p.numel() for p in network.parameters()) for network in (joint, parts)]
    assert sizes[0] == sizes[1]


def test_a_state_from_before_is_taken_over() -> None:
    joint = Transformer()
    state = joint.state_dict()
    parts = separate_attention(Transformer())
    parts.load_state_dict(separated(parts, state))
    torch.testing.assert_close(parts.eval()(EXAMPLE), joint.eval()(EXAMPLE))
    assert separated(parts, parts.state_dict()).keys() == parts.state_dict().keys()


def test_what_cannot_be_separated_is_refused_or_left() -> None:
    for setting in ({"kdim": 6}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"batch_first": False}):
        network = nn.ModuleList([nn.MultiheadAttention(12, 3, **({"batch_first": True} | setting))])
        with pytest.raises(ValueError, match="separated for one width"):
            separate_attention(network)
    torchs_own = nn.TransformerEncoderLayer(12, 3, 16, batch_first=True)
    assert isinstance(separate_attention(torchs_own).get_submodule("self_attn"), nn.MultiheadAttention)
    network = transformer().get_submodule("attention")
    with pytest.raises(ValueError, match="does not give the weights"):
        network(*[torch.zeros(1, 2, WIDTH)] * 3, need_weights=True)


def test_sites() -> None:
    sites = {site.name: site for site in find_sites(transformer(), EXAMPLE)}
    assert {name: (site.kind, site.size, site.tokens) for name, site in sites.items()} == {
        "attention.query": ("inner", WIDTH, True),
        "attention.value": ("inner", WIDTH, True),
    }
    assert sites["attention.query"].producers == ("attention.query", "attention.key")
    assert sites["attention.query"].parameters_per_unit == 2 * (WIDTH + 1)
    assert sites["attention.value"].readers == ("attention.out",)


@pytest.mark.parametrize("heads", [(0,), (1,), (0, 2)])
def test_a_head_goes_with_its_queries_and_keys(heads: tuple[int, ...]) -> None:
    """None of those was off: nobody asks for a product whose values are all zero."""
    result = check(transformer(), plan_of(attention__value=of_head(*heads)), EXAMPLE)
    left = WIDTH - len(heads) * WIDTH // HEADS
    assert products(result.network).heads == HEADS - len(heads)
    assert {shapes(result.network)[f"attention.{part}.weight"] for part in ("query", "key", "value")} == {
        (left, WIDTH)
    }
    assert shapes(result.network)["attention.out.weight"] == (WIDTH, left)
    assert result.certificate.removed_units == 2 * (WIDTH - left)


def test_heads_stay_of_one_size() -> None:
    """Two of four channels in the first head, one in the others: one goes from each."""
    plan = plan_of(attention__value=off(WIDTH, 0, 1, 4, 9), attention__query=off(WIDTH, 2, 3, 6, 7, 10, 11))
    result = check(transformer(), plan, EXAMPLE)
    assert products(result.network).heads == HEADS
    assert shapes(result.network)["attention.value.weight"] == (9, WIDTH)
    assert shapes(result.network)["attention.query.weight"] == (6, WIDTH)
    assert result.certificate.removed_units == 9
    # The products keep the scale they had: the square root of four channels, not of two.
    assert products(result.network).scale == 0.5


def test_a_key_that_is_the_same_for_all_tokens_is_not_missed() -> None:
    network = transformer()
    with torch.no_grad():
        network.get_parameter("attention.key.weight")[[1, 5, 9]] = 0  # its bias stays: a constant, not zero
    result = check(network, plan_of(), EXAMPLE)
    assert shapes(result.network)["attention.query.weight"] == (9, WIDTH)
    # A constant query weighs the tokens, and stays.
    network = transformer()
    with torch.no_grad():
        network.get_parameter("attention.query.weight")[[1, 5, 9]] = 0
    result = check(network, plan_of(), EXAMPLE)
    assert shapes(result.network)["attention.query.weight"] == (12, WIDTH)


def test_without_queries_the_tokens_are_averaged() -> None:
    result = check(transformer(), plan_of(attention__query=off(WIDTH, *range(WIDTH))), EXAMPLE)
    assert shapes(result.network)["attention.query.weight"] == (HEADS, WIDTH)
    assert result.collapsed == ("attention.query",)


def test_without_values_the_branch_is_a_shift() -> None:
    result = check(transformer(), plan_of(attention__value=off(WIDTH, *range(WIDTH))), EXAMPLE)
    assert not any(name.startswith("attention") for name in shapes(result.network))
    assert result.architecture.layer_changes[-1].kind == "shift"


@pytest.mark.parametrize("seed", range(4))
def test_random_units_and_the_architecture_again(seed: int) -> None:
    network = transformer(bias=seed % 2 == 0)
    result = check(network, random_plan(network, EXAMPLE, seed=seed, share=0.6), EXAMPLE)
    rebuilt = apply_architecture(network, result.architecture, EXAMPLE)
    assert shapes(rebuilt) == shapes(result.network)
    assert products(rebuilt).heads == products(result.network).heads


def test_a_multiple_of_channels() -> None:
    plan = plan_of(attention__value=of_head(1), attention__query=off(WIDTH, 0, 1, 2, 4, 5, 6, 8, 9, 10))
    result = compact(transformer(), plan, EXAMPLE, multiple=4)
    assert result.certificate.passed
    assert shapes(result.network)["attention.value.weight"] == (8, WIDTH)
    assert shapes(result.network)["attention.query.weight"][0] % 4 == 0


class Odd(nn.Module):
    """Products of what is no linear layer, and of queries that somebody else reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.products, self.head = HeadProducts(2, 0.5), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2)[:, :, :8]
        query = self.query(x)
        return self.head((self.products(query, x, self.value(x)) + query).mean(1))


def test_unknown_keys_pin_the_queries() -> None:
    network = randomise(Odd())
    assert [site.name for site in find_sites(network, EXAMPLE)] == []
    check(network, plan_of(), EXAMPLE)


class ProductsTwice(nn.Module):
    """Two attentions that share the layer of their products, which has no parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.one, self.two, self.head = (nn.Linear(size, 12) for size in (8, 12, 12, 12))
        self.products = HeadProducts(HEADS, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.mean(1))
        one = self.one(x)
        x = self.two(x + self.products(one, one, one))
        return self.head(self.products(x, x, x).mean(1))


def test_products_that_are_called_twice_stay_as_they_are() -> None:
    network = randomise(ProductsTwice()).eval()
    result = check(network, random_plan(network, EXAMPLE), EXAMPLE)
    assert "products: HeadProducts used more than once" in result.pinned
