"""Every method on a LeNet, a VGG and a ResNet, there also with the units of its streams: what it removes goes
physically, and the compact network is the masked one; or it says why it does not run there."""

from __future__ import annotations

from pathlib import Path

import pytest

import methods
from bench.data import load_test
from bench.offer import skip_reason
from bench.training.recipe import Recipe
from tests.contract.cases import Case, analysed, cells_of, run_cell

FAMILIES = [("lenet", False), ("vgg", False), ("resnet", False), ("resnet", True)]
"""With whether the methods may remove units of residual streams."""

SKIPPED = {
    ("network-slimming", "lenet"): "no batch normalisation",
    ("branch-magnitude", "lenet"): "branch",
    ("branch-magnitude", "vgg"): "branch",
}


class Brief(Case):
    """A case with a quarter of the images in each epoch."""

    @property
    def recipe(self) -> Recipe:
        return super().recipe.model_copy(update={"epoch_fraction": 0.25})


@pytest.mark.parametrize(("family", "streams"), FAMILIES)
@pytest.mark.parametrize("name", methods.available())
def test_the_compact_network_is_the_masked_one(name: str, family: str, streams: bool, tmp_path: Path) -> None:
    case, network = Brief(name), f"tests.contract.families:{family}"
    reason = skip_reason(case.create(), *analysed(network), streams=streams)
    assert (reason is not None) == ((name, family) in SKIPPED), reason
    if reason is not None:
        assert SKIPPED[name, family] in reason
        return
    grid = case.create().grid
    (cell,) = cells_of(case, (grid[len(grid) // 2],), network=network, streams=streams)
    (point,) = run_cell(cell, tmp_path).points
    assert point.status == "done", point.failure
    assert point.certificate is not None
    assert point.certificate.difference_float64 <= 1e-9
    assert point.certificate.images == len(load_test("digits", None))
    assert point.test is not None
    assert point.masked_test is not None
    assert point.test.accuracy == point.masked_test.accuracy


def test_units_of_streams_go_where_they_are_offered(tmp_path: Path) -> None:
    network = "tests.contract.families:resnet"
    streams = {site.name for site in analysed(network)[1] if site.kind == "stream"}
    (cell,) = cells_of(Brief("random"), (0.5,), network=network, streams=True)
    (point,) = run_cell(cell, tmp_path).points
    assert streams
    assert all(point.kept[site] < point.sizes[site] for site in streams), point.kept
