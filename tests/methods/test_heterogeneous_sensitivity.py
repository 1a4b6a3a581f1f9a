"""The control around the sensitivities: the multiplier, feasible snapshots, the L-curve, strength zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import methods
from bench import suite
from bench.filters import Filters
from bench.plan import make_plan
from methods.base import Evaluation, Phase, Request, Site, StepContext
from methods.heterogeneous_sensitivity import (
    LAMBDA_0,
    LAMBDA_MAX,
    HeterogeneousSensitivity,
    curve_multipliers,
)

Network = tuple[nn.Module, list[Site]]
MakeContext = Callable[..., StepContext]
SPARSIFY = Phase("sparsify", 1.0)


def attached(network: Network, context: StepContext, **config: Any) -> HeterogeneousSensitivity:
    method = methods.create("heterogeneous-sensitivity", **config)
    assert isinstance(method, HeterogeneousSensitivity)
    context.phase, context.phase_steps = SPARSIFY, context.steps
    method.attach(*network, context)
    return method


def never() -> Evaluation:
    raise AssertionError("this method needs no validation")


def test_the_multiplier_follows_the_constraint(mlp: Network, make_context: MakeContext) -> None:
    """Up while the mean loss is within ε, down while it is not, between its bounds; at rest in the warm-up."""
    method = attached(mlp, make_context(0.1, steps=1000), warmup=0.1, ratchet=0.5)
    rho = math.log(LAMBDA_MAX / LAMBDA_0) / 500
    for step, loss, expected in [
        (100, 0.0, LAMBDA_0),
        (101, 0.1, LAMBDA_0 * (1 + rho)),
        (102, 0.05, LAMBDA_0 * (1 + rho) ** 2),
        (103, 0.2, LAMBDA_0 * (1 + rho) ** 2 * (1 - rho)),
    ]:
        method.context.step = step
        method.mean_loss.fill_(loss)
        method.after_step()
        assert float(method.multiplier) == pytest.approx(expected, rel=1e-6)
    for loss, bound in ((1.0, LAMBDA_0), (0.0, LAMBDA_MAX)):
        method.mean_loss.fill_(loss)
        for _ in range(1000):
            method.after_step()
        assert float(method.multiplier) == pytest.approx(bound)


def test_the_mean_loss_is_a_running_mean_without_the_penalty(
    mlp: Network, make_context: MakeContext, noise_batches: Callable[..., Any], train: Callable[..., None]
) -> None:
    method = attached(mlp, make_context(0.1, steps=30))
    seen: list[float] = []
    plain = method.context.task_loss

    def noted(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = plain(logits, targets)
        seen.append(float(loss.detach()))
        return loss

    method.context.task_loss = noted
    train(method, noise_batches((64,)), lambda parameters: torch.optim.SGD(parameters, lr=0.05))
    expected = seen[0]
    for loss in seen[1:]:
        expected = 0.98 * expected + 0.02 * loss
    assert float(method.mean_loss) == pytest.approx(expected, rel=1e-6)


def test_snapshots_are_feasible_and_have_the_fewest_units(mlp: Network, make_context: MakeContext) -> None:
    """A state is kept if it meets ε and has fewer units, or as many at a smaller loss; the end goes back to it."""
    method = attached(mlp, make_context(0.1, steps=100))
    losses: list[float] = []
    method._recent_loss = lambda: losses.pop()  # type: ignore[method-assign]

    def epoch(off: int, loss: float, step: int = 10) -> Request | None:
        with torch.no_grad():
            method.gates.values["0"].fill_(1.0)[:off] = 0.0
        losses.append(loss)
        method.context.phase_step = step
        return method.after_epoch(never)

    assert epoch(5, 0.2) is None
    assert epoch(0, 0.1) is Request.KEEP_BEST
    assert epoch(8, 0.11) is None
    assert epoch(4, 0.09) is Request.KEEP_BEST
    assert epoch(4, 0.095) is None
    assert epoch(4, 0.05) is Request.KEEP_BEST
    assert epoch(2, 0.01) is None
    assert epoch(9, 0.3, step=100) is Request.ROLLBACK
    assert epoch(10, 0.1, step=100) is Request.KEEP_BEST


def test_without_a_feasible_state_the_last_one_counts(mlp: Network, make_context: MakeContext) -> None:
    method = attached(mlp, make_context(1e-9, steps=100))
    method._recent_loss = lambda: 1.0  # type: ignore[method-assign]
    method.context.phase_step = 100
    assert method.after_epoch(never) is None
    with torch.no_grad():
        method.gates.values["2"][3] = 0.0
    method.detach()
    plan = method.plan(1e-9)
    assert (~plan.kept["2"]).nonzero().flatten().tolist() == [3]
    assert "no state met the tolerance" in plan.notes


def test_the_loss_of_a_state_is_of_evaluation_mode_and_of_the_last_images(
    convnet: Network, make_context: MakeContext, noise_batches: Callable[..., Any], train: Callable[..., None]
) -> None:
    network, _ = convnet
    method = attached(convnet, make_context(0.1, steps=8))
    batches = noise_batches((1, 8, 8))
    train(method, batches, lambda parameters: torch.optim.SGD(parameters, lr=0.05))
    network.eval()
    with torch.no_grad():
        expected = torch.stack([nn.functional.cross_entropy(network(x), y) for x, y in batches]).mean()
    assert method._recent_loss() == pytest.approx(float(expected), rel=1e-5)
    assert network.training
    assert not method._recent


@pytest.mark.parametrize("strength", [0.0, 0.1])
def test_weight_decay_and_scales(strength: float, convnet: Network, make_context: MakeContext) -> None:
    """The weights around a gate decay whatever the recipe says, s does not; γ is s's double and rests. At strength
    zero nothing is touched."""
    network, _ = convnet
    method = attached(convnet, make_context(strength), weight_decay=1e-3)
    groups = method.parameter_groups()
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    if strength == 0:
        assert groups == []
        assert frozen == []
        assert not any(module._forward_pre_hooks for module in network.modules())
        return
    (group,) = groups
    assert group["weight_decay"] == 1e-3
    assert {id(p) for p in group["params"]} == {id(network.get_parameter(f"{n}.weight")) for n in "038"}
    assert frozen == ["1.weight", "4.weight"]
    method.detach()
    assert all(p.requires_grad for p in network.parameters())


def test_phases(mlp: Network, make_context: MakeContext) -> None:
    def names(**config: Any) -> list[str]:
        phases = methods.create("heterogeneous-sensitivity", **config).phases(100)
        assert sum(phase.fraction for phase in phases) == pytest.approx(1)
        assert not any(phase.shared for phase in phases)
        return [phase.name for phase in phases]

    assert names() == ["sparsify"]
    assert names(finetune=0.25) == ["sparsify", "finetune"]
    curve = [f"curve {k}" for k in range(1, 9)]
    assert names(selection="l-curve") == ["warmup", *curve, "sparsify"]
    assert names(selection="l-curve", finetune=0.2)[-1] == "finetune"


def test_going_back_does_not_forget_the_curve(mlp: Network, make_context: MakeContext) -> None:
    """Each short training ends by going back to the warm-up's state; a resumed run takes the curve it had."""
    method = attached(mlp, make_context(1.0, steps=100), selection="l-curve")
    losses = [0.02, 0.02, 0.02, 0.03, 0.1, 0.4, 1.0, 2.0]
    penalties = [30.0, 20.0, 10.0, 4.0, 3.5, 3.2, 3.1, 3.0]
    *phases, long = method.phases(100)
    warmup, *curve = phases
    method.context.phase, method.context.phase_step = warmup, 100
    method._recent_loss = lambda: losses[len(method.curve)]  # type: ignore[method-assign]
    method.gates.penalty = lambda: penalties[len(method.curve)]  # type: ignore[method-assign]
    assert method.after_epoch(never) is Request.KEEP_BEST
    start = {
        key: value.clone() if torch.is_tensor(value) else value for key, value in method.state_dict().items()
    }
    for phase, multiplier in zip(curve, curve_multipliers(8).tolist(), strict=True):
        method.context.phase = phase
        method.start_phase(phase)
        assert float(method.multiplier) == pytest.approx(multiplier)
        assert method.after_epoch(never) is Request.ROLLBACK
        method.load_state_dict(start)
    assert method.curve.tolist() == [list(point) for point in zip(losses, penalties, strict=True)]
    method.start_phase(long)
    assert float(method.multiplier) == pytest.approx(float(curve_multipliers(8)[3]))
    method.detach()
    resumed = attached(mlp, make_context(1.0, steps=100), selection="l-curve")
    resumed.load_state_dict(method.state_dict())
    assert torch.equal(resumed.curve, method.curve)


def test_an_entry_without_strengths_runs_the_curve_at_its_corner() -> None:
    """Where a strength is a multiple of the corner's λ; a tolerance of 0.02 nats would be hardly any penalty."""
    ratchet, curve = (
        methods.create("heterogeneous-sensitivity", selection=selection)
        for selection in ("ratchet", "l-curve")
    )
    assert (ratchet.grid, curve.grid) == (ratchet.strengths, (0.5, 1.0, 2.0))
    entry = {"name": "heterogeneous-sensitivity", "config": {"selection": "l-curve"}}
    of = {"dataset": "digits", "network": "mlp-300-100", "recipe": {"epochs": 30}}
    text = {"name": "curve", "title": "curve", "seeds": [0], "workloads": [of], "methods": [entry]}
    cells = make_plan(suite.Suite.model_validate(text), Filters(), None).cells
    assert [cell.strength for cell in cells] == [0.5, 1.0, 2.0]


def test_refusals(mlp: Network, make_context: MakeContext) -> None:
    method = methods.create("heterogeneous-sensitivity")
    assert method.supports(*mlp) is None
    stream = Site("0", 20, "stream", ("0",), (), ("0",), ("2",), 1.0, 1.0)
    for sites in ([], [stream]):
        assert "no hidden units" in str(method.supports(mlp[0], sites))
    trained = attached(mlp, make_context(0.1))
    trained.detach()
    with pytest.raises(ValueError, match=r"trained for strength 0\.1"):
        trained.plan(0.2)
    for bad in ({"finetune": 1.0}, {"weight_decay": 0.0}, {"curve_points": 7}, {"selection": "corner"}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            methods.create("heterogeneous-sensitivity", **bad)
