"""Every method trains with the network in bf16, on a CPU as well, or in float32 where it says so."""

from __future__ import annotations

import pytest

import methods
from bench.offer import skip_reason
from tests.contract.cases import Case, analysed, open_loop, phases_of

SMALL = "mlp-300-100"


@pytest.mark.parametrize("name", methods.available())
def test_trains_with_the_network_in_bf16(name: str) -> None:
    case = Case(name)
    method = case.create()
    small = SMALL if skip_reason(method, *analysed(SMALL), streams=False) is None else None
    network, method, loop = open_loop(case, method.strengths[len(method.strengths) // 2], small)
    loop.recipe = loop.recipe.model_copy(update={"precision": "bf16"})
    progress = loop.run(phases_of(case))
    method.detach()
    assert progress.notes == ([] if method.autocast else [f"trained in float32: {name} does not run in bf16"])
    assert progress.history[-1]["train_loss"] < 3
    assert all(bool(value.isfinite().all()) for value in network.state_dict().values())
