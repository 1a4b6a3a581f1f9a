"""From a finished point to its controls, and those run: the same shape, layers included, and the same counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from bench import load_compact, suite
from bench.cli import main
from bench.controls import as_toml, control_entries, control_suite, write_controls
from bench.errors import BadInput
from bench.execute.cell import CellRun
from bench.execute.layout import compact
from bench.execute.subject import initialise
from bench.filters import Filters
from bench.networks import build
from bench.plan import make_plan
from bench.records.read import read_records
from bench.records.schema import PointRecord

SUITE = """
title = "two points"
seeds = [1]
[[workloads]]
dataset = "digits"
network = "mlp-deep"
recipe = { epochs = 4, batch_size = 64 }
[[methods]]
name = "layer-sparsity"
strengths = [6.0]
[[methods]]
name = "magnitude"
strengths = [0.0, 0.8]
config = { scope = "global", finetune = 0.0 }
"""

STREAMS = """
title = "a point that has lost units of its streams"
seeds = [0]
[[workloads]]
dataset = "digits"
network = "tests.contract.families:resnet"
streams = true
recipe = { epochs = 2, batch_size = 256, learning_rate = 4e-3 }
[[methods]]
name = "magnitude"
strengths = [0.5]
config = { finetune = 0.0 }
"""

BRANCHES = """
title = "a point without most of its blocks"
seeds = [0]
[[workloads]]
dataset = "digits"
network = "resnet20"
recipe = { epochs = 2, batch_size = 256, learning_rate = 4e-3 }
[[methods]]
name = "branch-magnitude"
strengths = [0.99]
"""


def run(file: Path, results: Path) -> list[PointRecord]:
    torch.set_num_threads(1)
    for cell in make_plan(suite.load(str(file)), Filters(), None).cells:
        assert CellRun(cell, results, None, torch.device("cpu"), lambda fraction, doing: None).run()
    return list(read_records(results).point.values())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, PointRecord]]:
    folder = tmp_path_factory.mktemp("finished")
    (folder / "points.toml").write_text(SUITE)
    points = run(folder / "points.toml", folder / "results")
    return folder / "results", {f"{point.method.name} {point.strength:g}": point for point in points}


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def test_controls_have_the_shape_of_their_point(
    finished: tuple[Path, dict[str, PointRecord]], tmp_path: Path
) -> None:
    results, points = finished
    originals = [points["layer-sparsity 6"], points["magnitude 0.8"]]
    assert originals[0].layer_actions[0] == "linearise fc2"
    merged_away = [words.split()[1] for words in originals[0].layer_actions if words.startswith("merge")]
    assert merged_away
    assert [originals[0].kept[site] for site in merged_away] == [0] * len(merged_away)
    written = write_controls(results, [point.id for point in originals], tmp_path / "controls.toml")
    loaded = suite.load(str(tmp_path / "controls.toml"))
    assert loaded.model_dump(exclude={"name"}) == written.model_dump(exclude={"name"})
    assert [entry.name for entry in written.methods] == ["same-shape", "same-shape", "random"]
    assert loaded.methods[1].shown == "same shape as magnitude at 0.8"
    controls = {point.method.label: point for point in run(tmp_path / "controls.toml", tmp_path / "results")}
    for original in originals:
        control = controls[f"same shape as {original.method.label} at {original.strength:g}"]
        of_original = load_compact(compact(results, original.id))
        of_control = load_compact(compact(tmp_path / "results", control.id))
        assert shapes(of_original) == shapes(of_control)
        assert (control.kept, control.layer_actions) == (original.kept, original.layer_actions)
        assert control.cost is not None
        assert original.cost is not None
        assert (control.cost.parameters, control.cost.macs) == (original.cost.parameters, original.cost.macs)
        assert control.workload == original.workload
        assert control.certificate is not None
        assert control.certificate.passed
    random = controls["random at the ratios of magnitude at 0.8"]
    assert random.kept == points["magnitude 0.8"].kept


def test_points_of_one_shape_have_one_control(
    finished: tuple[Path, dict[str, PointRecord]], tmp_path: Path
) -> None:
    point = finished[1]["magnitude 0.8"]
    other = point.model_copy(update={"method": point.method.model_copy(update={"label": "another"})})
    made = control_suite([point, other])
    assert [entry.shown for entry in made.methods] == [
        "same shape as magnitude at 0.8; same shape as another at 0.8",
        "random at the ratios of magnitude at 0.8; random at the ratios of another at 0.8",
    ]
    (tmp_path / "controls.toml").write_text(as_toml(made))
    plan = make_plan(suite.load(str(tmp_path / "controls.toml")), Filters(), None)
    assert len(plan.cells) == 2


def test_the_strength_of_a_point_may_be_anything(
    finished: tuple[Path, dict[str, PointRecord]], tmp_path: Path
) -> None:
    """A penalty of 30 is none of the fractions that random units take for a strength."""
    point = finished[1]["magnitude 0.8"].model_copy(update={"strength": 30.0})
    made = control_suite([point])
    gone = 1 - sum(point.kept.values()) / sum(point.sizes.values())
    assert [entry.strengths for entry in made.methods] == [(30.0,), (pytest.approx(gone, abs=1e-4),)]
    (tmp_path / "controls.toml").write_text(as_toml(made))
    cells = make_plan(suite.load(str(tmp_path / "controls.toml")), Filters(), None).cells
    assert [cell.method.name for cell in cells] == ["same-shape", "random"]


@pytest.mark.parametrize(("left", "strength"), [(29_999, 1e-4), (1, 1 - 1e-4), (12_000, 0.6)])
def test_random_units_go_at_a_strength_that_takes_some(
    finished: tuple[Path, dict[str, PointRecord]], left: int, strength: float
) -> None:
    """At a strength that is rounded to 0 the whole network would stay."""
    point = finished[1]["magnitude 0.8"].model_copy(update={"kept": {"fc1": left}, "sizes": {"fc1": 30_000}})
    assert control_entries(point)[1].strengths == (pytest.approx(strength),)


def test_the_control_of_a_point_without_the_block_that_names_a_stream(tmp_path: Path) -> None:
    (tmp_path / "points.toml").write_text(BRANCHES)
    original = run(tmp_path / "points.toml", tmp_path / "results")[0]
    assert "drop stages.2.0.bn2" in original.layer_actions
    # The first layer that writes the last stream, which is named by it.
    assert original.kept["stages.2.0.conv2"] == 0
    write_controls(tmp_path / "results", [original.id], tmp_path / "controls.toml")
    control = run(tmp_path / "controls.toml", tmp_path / "controls")[0]
    assert (control.kept, control.layer_actions) == (original.kept, original.layer_actions)
    of_original = load_compact(compact(tmp_path / "results", original.id))
    of_control = load_compact(compact(tmp_path / "controls", control.id))
    assert shapes(of_control) == shapes(of_original)


def test_the_controls_of_a_point_that_has_lost_units_of_its_streams(tmp_path: Path) -> None:
    """In a workload whose methods are offered no streams: there weights that go may take such units with them."""
    (tmp_path / "points.toml").write_text(STREAMS)
    original = run(tmp_path / "points.toml", tmp_path / "results")[0]
    assert original.kept["0"] < original.sizes["0"]
    workload = original.workload.model_copy(update={"streams": False})
    made = control_suite([original.model_copy(update={"workload": workload})])
    (tmp_path / "controls.toml").write_text(as_toml(made))
    controls = run(tmp_path / "controls.toml", tmp_path / "controls")
    kept = {control.method.name: control.kept for control in controls}
    assert kept["same-shape"] == original.kept
    # In the second stream a unit stays as long as the shortcut brings one of the first, whatever was drawn there.
    assert all(kept["random"][site] == left for site, left in original.kept.items() if site != "5.conv2")


def test_the_same_compute(finished: tuple[Path, dict[str, PointRecord]], tmp_path: Path) -> None:
    point = finished[1]["layer-sparsity 6"]
    assert point.cost is not None
    assert point.dense_cost is not None
    made = control_suite([point], same_compute=True)
    assert made.workloads[0].recipe.epochs == round(4 * point.dense_cost.macs / point.cost.macs)
    assert made.workloads[0].recipe.epochs > 4
    assert [entry.shown for entry in made.methods] == ["same shape as layer-sparsity at 6, same compute"]
    write_controls(finished[0], [point.id], tmp_path / "controls.toml", same_compute=True)
    (control,) = run(tmp_path / "controls.toml", tmp_path / "results")
    assert control.cost is not None
    assert control.cost.macs == point.cost.macs
    epochs = control.workload.recipe["epochs"]
    assert abs(epochs * control.cost.macs - 4 * point.dense_cost.macs) <= control.cost.macs / 2
    with pytest.raises(BadInput, match="give one point"):
        control_suite([point, finished[1]["magnitude 0.8"]], same_compute=True)


def test_a_label_in_any_script(finished: tuple[Path, dict[str, PointRecord]], tmp_path: Path) -> None:
    _, points = finished
    point = points["magnitude 0.8"]
    point = point.model_copy(update={"method": point.method.model_copy(update={"label": "größe 🎯"})})
    made = control_suite([point])
    (tmp_path / "c.toml").write_text(as_toml(made), encoding="utf-8")
    assert suite.load(str(tmp_path / "c.toml")).methods == made.methods


def test_what_has_no_controls(finished: tuple[Path, dict[str, PointRecord]]) -> None:
    _, points = finished
    with pytest.raises(BadInput, match="keeps the whole network"):
        control_entries(points["magnitude 0"])
    point = points["magnitude 0.8"]
    with pytest.raises(BadInput, match="failed"):
        control_entries(point.model_copy(update={"status": "failed"}))
    with pytest.raises(BadInput, match="different workloads or seeds"):
        control_suite([point, point.model_copy(update={"seed": 2})])


def test_the_command(
    finished: tuple[Path, dict[str, PointRecord]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results, points = finished
    point, out = points["magnitude 0.8"], tmp_path / "made.toml"
    assert main(["controls", point.id, "--results", str(results), "--out", str(out)]) == 0
    assert out.read_text() == as_toml(control_suite([point]))
    assert "2 entries" in capsys.readouterr().out
    assert main(["controls", point.id[:-1], "--results", str(results), "--out", str(out)]) == 2
    assert f"did you mean '{point.id}'?" in capsys.readouterr().err


def test_thin_networks_begin_as_their_network_does() -> None:
    """He-normal, where the network says so; where it says nothing, as its layers do, in their order."""
    network = build("mlp-deep", (1, 8, 8), 10)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(5.0)
    initialise(network)
    assert float(network.get_parameter("fc3.weight").detach().std()) == pytest.approx(
        (2 / 100) ** 0.5, rel=0.05
    )
    assert float(network.get_parameter("fc3.bias").detach().abs().max()) == 0
    torch.manual_seed(3)
    plain = build("mlp-300-100", (1, 8, 8), 10)
    expected = shapes(plain), plain.get_parameter("fc3.weight").clone()
    torch.manual_seed(3)
    initialise(plain)
    assert torch.equal(plain.get_parameter("fc3.weight"), expected[1])
