"""The run that finds the shapes leaves convolutions out; the shapes are those of a run that does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_networks import check, images, off, plan_of, randomise, shapes
from torch import Tensor, fx, nn

from bench.compaction.graph import build_graph
from bench.compaction.tracing import record, trace
from bench.errors import BadInput

CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 5, 3),
    "strided": nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilated": nn.Conv2d(3, 5, 3, dilation=2),
    "same": nn.Conv2d(3, 5, (3, 5), padding="same"),
    "circular": nn.Conv2d(3, 5, 3, padding=2, padding_mode="circular"),
    "grouped": nn.Conv2d(3, 6, 3, groups=3),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("images_at_once", [1, 4])
def test_shapes_are_those_of_a_whole_run(name: str, images_at_once: int) -> None:
    network = nn.Sequential(
        CONVOLUTIONS[name], nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    ).eval()
    example, traced = images(images_at_once, 3, 9, 11), trace(network)

    class Whole(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Tensor:
            result: Tensor = super().run_node(n)
            expected[n] = tuple(result.shape)
            return result

    expected: dict[fx.Node, tuple[int, ...]] = {}
    Whole(network, graph=traced).run(example)
    assert record(network, traced, example).shapes == expected


def test_a_hook_of_a_convolution_has_its_say() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU())
    network[0].register_forward_hook(lambda module, inputs, output: output[:, :, ::2])
    traced, example = trace(network), images(1, 3, 9, 9)
    shapes = record(network, traced, example).shapes
    assert list(shapes.values())[-1] == tuple(network(example).shape)


@pytest.mark.parametrize(
    ("example", "complaint"),
    [(torch.zeros(1, 4, 9, 9), "4 channels"), (torch.zeros(1, 3, 2, 2), "Kernel size")],
    ids=["channels", "too small"],
)
def test_what_a_convolution_does_not_take_is_refused(example: Tensor, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        build_graph(nn.Sequential(nn.Conv2d(3, 5, 3)), example)


class Told(nn.Module):
    """Can be told more than its input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.fc = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 4, 1), nn.Linear(10, 3)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0, *, features: bool = False
    ) -> Tensor:
        x = torch.cat([self.one(x), self.two(x)], 1)
        if mask is not None:
            x = x * mask
        x = torch.relu(scale * x).mean((2, 3))
        return x if features else self.fc(x)


def test_what_a_network_can_be_told_has_its_default() -> None:
    network = randomise(Told())
    result = check(network, plan_of(one=off(6, 0, 2), two=off(4, 0, 1, 2, 3)), images(2, 3, 8, 8))
    assert "two.weight" not in shapes(result.network)


WRONG = """
from torch import nn
class Wrong(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
"""


def test_the_place_is_named_wherever_the_code_of_the_user_lies(tmp_path: Path) -> None:
    file = tmp_path / "torch" / "wrong.py"
    file.parent.mkdir()
    file.write_text(WRONG)
    known: dict[str, Any] = {}
    exec(compile(WRONG, file, "exec"), known)
    with pytest.raises(BadInput, match=r"control flow at .*wrong\.py:5: if x\.sum\(\) > 0:$"):
        trace(known["Wrong"]())


def test_the_layer_that_does_not_take_its_input_is_named_in_one_line() -> None:
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(9, 3))
    with pytest.raises(BadInput, match=r"at 2: mat1 and mat2 shapes cannot be multiplied \(1x245 and 9x3\)$"):
        build_graph(network, torch.zeros(1, 3, 9, 9))
