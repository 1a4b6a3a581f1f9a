"""A compact network written and read again; damaged folders."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_networks import Residual, images, off, plan_of, random_gate, randomise, shapes
from torch import Tensor, nn

from bench import networks
from bench.compaction import (
    Dynamic,
    archive,
    compact,
    find_sites,
    load_archive,
    load_compact,
    save_compact,
)
from bench.compaction.gating import with_gates
from bench.errors import BadInput

EXAMPLE = images(2, 3, 8, 8)
SHAPE = (3, 8, 8)


@pytest.fixture(autouse=True)
def known_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = networks.build

    def build(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
        own = {"residual": Residual, "turning": Turning}
        return own[name]() if name in own else real(name, input_shape, classes)

    monkeypatch.setattr(networks, "build", build)


class Turning(Residual):
    """With a table of complex numbers, and one in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.polar(torch.ones(8), torch.arange(8.0)))
        self.register_buffer("precise", torch.rand(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.view_as_real(x * self.table).sum(-1))


def write(folder: Path) -> nn.Module:
    plan = plan_of([("drop", ("bn2",))], stem=off(6, 1, 4))
    result = compact(randomise(Residual()), plan, EXAMPLE)
    save_compact(folder, result, "residual", SHAPE, 4)
    return result.network


def test_every_tensor_comes_back_as_it_was(tmp_path: Path) -> None:
    network = Turning()
    randomise(network)
    result = compact(network, plan_of(stem=off(6, 1, 4)), EXAMPLE)
    assert result.certificate.passed, result.certificate
    save_compact(tmp_path, result, "turning", SHAPE, 4)
    loaded = load_compact(tmp_path)
    kinds = {name: value.dtype for name, value in result.network.state_dict().items()}
    assert {name: value.dtype for name, value in loaded.state_dict().items()} == kinds
    assert torch.equal(loaded(EXAMPLE), result.network(EXAMPLE))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_round_trip(tmp_path: Path, dtype: torch.dtype) -> None:
    network = randomise(Residual()).to(dtype)
    result = compact(network, plan_of(stem=off(6, 1, 4), conv1=off(5, 0)), EXAMPLE)
    save_compact(tmp_path / "new" / "point", result, "residual", SHAPE, 4)
    assert {path.name for path in (tmp_path / "new" / "point").iterdir()} == {
        archive.ARCHITECTURE,
        archive.WEIGHTS,
    }
    loaded = load_compact(tmp_path / "new" / "point")
    assert not loaded.training
    assert shapes(loaded) == shapes(result.network)
    given = EXAMPLE.to(dtype)
    assert torch.equal(loaded(given), result.network(given))


def test_round_trip_of_a_network_of_the_suite(tmp_path: Path) -> None:
    network = randomise(networks.build("lenet5", (1, 28, 28), 10))
    example = images(2, 1, 28, 28)
    result = compact(network, plan_of(conv1=off(20, 3), conv2=off(50, 1), fc1=off(500, 0)), example)
    save_compact(tmp_path, result, "lenet5", (1, 28, 28), 10)
    assert torch.equal(load_compact(tmp_path)(example), result.network(example))


def test_round_trip_with_layer_changes(tmp_path: Path) -> None:
    compacted = write(tmp_path)
    assert torch.equal(load_compact(tmp_path)(EXAMPLE), compacted(EXAMPLE))


def test_network_by_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_network.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, classes):\n"
        "    c, h, w = input_shape\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, 5, bias=False), nn.Sigmoid(),\n"
        "                         nn.Linear(5, classes, bias=False))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    network = randomise(networks.build("my_own_network:build", SHAPE, 4))
    result = compact(network, plan_of(**{"1": off(5, 2)}), EXAMPLE)
    assert result.architecture.added_biases == ("3",)
    save_compact(tmp_path / "point", result, "my_own_network:build", SHAPE, 4)
    assert torch.equal(load_compact(tmp_path / "point")(EXAMPLE), result.network(EXAMPLE))


def test_writing_again_replaces(tmp_path: Path) -> None:
    write(tmp_path)
    result = compact(randomise(Residual(), seed=5), plan_of(), EXAMPLE)
    save_compact(tmp_path, result, "residual", SHAPE, 4)
    assert torch.equal(load_compact(tmp_path)(EXAMPLE), result.network(EXAMPLE))


def spoil(folder: Path, key: str, value: object) -> None:
    path = folder / archive.ARCHITECTURE
    content = json.loads(path.read_text())
    content[key] = value
    path.write_text(json.dumps(content))


def test_damaged_folders(tmp_path: Path) -> None:
    write(tmp_path)
    architecture, weights = tmp_path / archive.ARCHITECTURE, tmp_path / archive.WEIGHTS
    good, good_weights = architecture.read_bytes(), weights.read_bytes()

    def fails(match: str) -> None:
        with pytest.raises(BadInput, match=match) as caught:
            load_compact(tmp_path)
        assert "\n" not in str(caught.value)
        assert str(tmp_path) in str(caught.value)
        architecture.write_bytes(good)
        weights.write_bytes(good_weights)
        load_compact(tmp_path)

    architecture.write_bytes(good[:50])
    fails(r"architecture.json: Invalid JSON")
    architecture.unlink()
    fails(r"architecture.json: cannot be read \(No such file")
    weights.unlink()
    fails(r"weights.safetensors: cannot be read")
    weights.write_bytes(good_weights[:-4])
    fails(r"weights.safetensors: damaged")
    for key, value, match in (
        ("unknown", 1, r"architecture.json: unknown: Extra inputs"),
        ("archive_version", 2, r"architecture.json: archive_version"),
        ("architecture", {"kept": {"stem": [0]}}, r"does not fit residual: .*size mismatch"),
        ("architecture", {"kept": {"stem": [99]}}, r"does not fit residual: .*ascend below 6"),
        ("network", "no-such-network", r"architecture.json: unknown network 'no-such-network'"),
        ("network", "no.such:place", r"architecture.json: network 'no.such:place'"),
        ("input_shape", [3, 8], r"architecture.json: input_shape"),
        ("input_shape", [5, 8, 8], r"does not fit residual: .*does not take an input"),
    ):
        spoil(tmp_path, key, value)
        fails(match)


def test_weights_that_are_no_safetensors(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / archive.WEIGHTS).write_bytes(b"")
    digest = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    spoil(tmp_path, "weights_sha256", digest)
    with pytest.raises(BadInput, match=r"weights\.safetensors"):
        load_compact(tmp_path)


def write_gated(folder: Path) -> tuple[nn.Module, Dynamic]:
    network = randomise(networks.build("lenet5", (1, 28, 28), 10)).eval()
    result = compact(network, plan_of(conv1=off(20, 3), fc1=off(500, 0)), images(2, 1, 28, 28))
    gates = {"conv1": random_gate(19), "fc1": random_gate(499, seed=1)}
    dynamic = Dynamic(gates, images(3, 1, 28, 28))
    save_compact(folder, result, "lenet5", (1, 28, 28), 10, dynamic)
    return result.network, dynamic


def test_round_trip_with_gates(tmp_path: Path) -> None:
    network, dynamic = write_gated(tmp_path)
    sites = find_sites(network, images(2, 1, 28, 28))
    loaded, given = load_compact(tmp_path), images(8, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(loaded(given), with_gates(network, sites, dynamic.gates)(given))
        assert not torch.equal(loaded(given), network(given))
    archived = load_archive(tmp_path)
    assert shapes(archived.network) == shapes(network)
    assert archived.dynamic is not None
    assert torch.equal(archived.dynamic.images, dynamic.images)
    assert list(archived.dynamic.gates) == ["conv1", "fc1"]
    assert (archived.network_name, archived.input_shape, archived.classes) == ("lenet5", (1, 28, 28), 10)


def test_an_archive_of_before_there_were_gates(tmp_path: Path) -> None:
    compacted = write(tmp_path)
    path = tmp_path / archive.ARCHITECTURE
    content = json.loads(path.read_text())
    del content["input_gates"]
    path.write_text(json.dumps(content))
    assert torch.equal(load_compact(tmp_path)(EXAMPLE), compacted(EXAMPLE))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda gates: gates.pop("conv1/floor"), r"lenet5: input_gates.safetensors holds conv1/offset"),
        (lambda gates: gates.update({"fc1/slope": torch.ones(3)}), r"lenet5: .*one number per unit"),
        (
            lambda gates: gates.update({f"fc1/{name}": torch.ones(500) for name in archive._NUMBERS}),
            r"lenet5: the gate of site 'fc1' has 500 units, the site has 499",
        ),
    ],
)
def test_gates_that_do_not_fit(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], object], match: str
) -> None:
    write_gated(tmp_path)
    path = tmp_path / archive.INPUT_GATES
    gates = load_file(path)
    change(gates)
    save_file(gates, path)
    with pytest.raises(BadInput, match=r"input_gates.safetensors: damaged"):
        load_compact(tmp_path)
    sites, digest = ["conv1", "fc1"], hashlib.sha256(path.read_bytes()).hexdigest()
    spoil(tmp_path, "input_gates", {"sites": sites, "sha256": digest})
    with pytest.raises(BadInput, match=match):
        load_compact(tmp_path)
    path.unlink()
    with pytest.raises(BadInput, match=r"input_gates.safetensors: cannot be read"):
        load_compact(tmp_path)
