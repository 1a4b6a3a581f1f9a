from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import networks
from bench.errors import BadInput

MNIST, CIFAR, DIGITS = (1, 28, 28), (3, 32, 32), (1, 8, 8)
SMALL = [
    "mlp-300-100",
    "mlp-500-300",
    "mlp-500-300-pixels",
    "mlp-deep",
    "mlp-no-bias",
    "lenet5",
    "digits-cnn",
    "cnn-deep",
]


@pytest.mark.parametrize(
    ("name", "input_shape", "parameters", "macs"),
    [
        ("mlp-300-100", MNIST, 266_610, 266_200),
        ("mlp-500-300", MNIST, 784 * 500 + 500 + 500 * 300 + 300 + 300 * 10 + 10, 545_000),
        ("mlp-500-300-pixels", MNIST, 545_000 + 810 + 784 * 784, 545_000 + 784 * 784),
        ("lenet5", MNIST, 431_080, 2_293_000),
        ("mlp-deep", MNIST, 784 * 100 + 5 * 100 * 100 + 100 * 10 + 610, 129_400),
        (
            "mlp-no-bias",
            MNIST,
            784 * 1000 + 1_000_000 + 500_000 + 100_000 + 2000,
            784 * 1000 + 1_000_000 + 500_000 + 100_000 + 2000,
        ),
        ("mlp-deep", DIGITS, 64 * 100 + 5 * 100 * 100 + 100 * 10 + 610, 57_400),
        (
            "cnn-deep",
            DIGITS,
            9 * (32 + 32 * 32 + 32 * 64 + 64 * 64) + 2 * (32 * 32 + 64 * 64) + 640 + 10,
            64 * (9 * (32 + 32 * 32) + 2 * 32 * 32) + 16 * (9 * 2048 + 4096) + 4 * (9 * 4096 + 4096) + 640,
        ),
        ("mlp-300-100", DIGITS, 64 * 300 + 300 + 300 * 100 + 100 + 100 * 10 + 10, 50_200),
        (
            "digits-cnn",
            DIGITS,
            9 * (16 + 16 * 32 + 32 * 32) + 2 * (16 + 32 + 32) + 32 * 10 + 10,
            64 * 9 * (16 + 16 * 32) + 16 * 9 * 32 * 32 + 320,
        ),
    ],
)
def test_parameters_and_macs(
    name: str, input_shape: tuple[int, int, int], parameters: int, macs: int
) -> None:
    """LeNets: the golden values of the literature (430,500 weights of lenet5; 784-300-100-10 and
    784-500-300-10)."""
    network = networks.build(name, input_shape, 10).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *input_shape))
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("input_shape", [MNIST, CIFAR, (3, 17, 40)])
@pytest.mark.parametrize("classes", [2, 100])
def test_any_images_and_classes(name: str, input_shape: tuple[int, int, int], classes: int) -> None:
    network = networks.build(name, input_shape, classes)
    assert network.training
    assert network(torch.rand(3, *input_shape)).shape == (3, classes)


@pytest.mark.parametrize("name", SMALL)
def test_the_forward_can_be_traced_for_any_batch(name: str) -> None:
    network = networks.build(name, CIFAR, 10).eval()
    traced = torch.fx.symbolic_trace(network)
    for count in (1, 5):
        images = torch.rand(count, *CIFAR)
        assert torch.equal(traced(images), network(images))
    layers = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert len(layers) == len(set(layers))


@pytest.mark.parametrize(
    "name", ["mlp-300-100", "mlp-deep", "mlp-no-bias", "lenet5", "digits-cnn", "cnn-deep"]
)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    network = networks.build(name, CIFAR, 10)
    network(torch.rand(4, *CIFAR)).square().sum().backward()
    for parameter in network.parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().sum() > 0


def test_layers_have_the_names_of_the_field() -> None:
    names = [name for name, _ in networks.build("lenet5", MNIST, 10).named_modules() if name]
    assert [name for name in names if not name.startswith(("relu", "pool"))] == [
        "conv1",
        "conv2",
        "fc1",
        "fc2",
    ]


def test_deep_networks_keep_the_scale_of_their_signal() -> None:
    """He-normal: with torch's own initialisation the logits would be a hundred times smaller than the pixels."""
    for name in ("mlp-deep", "cnn-deep"):
        torch.manual_seed(0)
        network = networks.build(name, MNIST, 10)
        logits = network(torch.randn(64, *MNIST))
        assert 0.2 < float(logits.detach().std()) < 5


def test_cnn_deep_needs_four_pixels() -> None:
    with pytest.raises(BadInput, match="at least 4×4, got 3×9"):
        networks.build("cnn-deep", (1, 3, 9), 10)
    assert networks.build("cnn-deep", (1, 4, 4), 3)(torch.rand(2, 1, 4, 4)).shape == (2, 3)
