"""The ARM estimator against exact enumeration of all gate states, its limits, and what its two passes leave alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import methods
from methods.arm import (
    ArmMethod,
    BernoulliGate,
    antithetic_gates,
    arm_gradient,
    main_gates,
    statistics_at_rest,
)
from methods.base import Batch, Phase, Site, StepContext

MakeContext = Callable[..., StepContext]
STRENGTH = 0.1


def tiny() -> tuple[nn.Module, list[Site]]:
    """3-2-3 with gates on both hidden layers: 32 states."""
    torch.manual_seed(3)
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 3))
    return network, [
        Site("0", 3, "inner", ("0",), (), ("0",), ("2",), 7.0, 1.0),
        Site("2", 2, "inner", ("2",), (), ("2",), ("4",), 7.0, 1.0),
    ]


def tiny_batch() -> Batch:
    generator = torch.Generator().manual_seed(5)
    return Batch(torch.randn(8, 4, generator=generator) * 2, torch.randint(3, (8,), generator=generator))


def attached(
    network: tuple[nn.Module, list[Site]], context: StepContext, name: str = "l0-arm", **config: object
) -> ArmMethod:
    method = methods.create(name, **config)
    assert isinstance(method, ArmMethod)
    method.attach(*network, context)
    return method


def states(size: int) -> Tensor:
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=size)), dtype=torch.float64)


def enumerated_gradient(loss_of: Callable[[Tensor], Tensor], phi: Tensor, k: float) -> Tensor:
    """∂/∂φ Σ_z f(z) Π_j π_j^z_j (1 − π_j)^(1 − z_j), by autograd over all states."""
    phi = phi.detach().double().requires_grad_()
    pi = torch.sigmoid(k * phi)
    expectation = torch.zeros((), dtype=torch.float64)
    for z in states(len(phi)):
        expectation = expectation + loss_of(z).double() * torch.where(z > 0, pi, 1 - pi).prod()
    (gradient,) = torch.autograd.grad(expectation, phi)
    return gradient


@pytest.mark.parametrize("k", [1.0, 7.0])
def test_unbiased_for_three_gates(k: float) -> None:
    """f is any function of the eight states; 400,000 draws, within four standard errors."""
    table = torch.tensor([0.3, -1.2, 2.0, 0.7, -0.4, 1.5, 0.1, -2.2], dtype=torch.float64)
    place = torch.tensor([4, 2, 1], dtype=torch.float64)

    def f(z: Tensor) -> Tensor:
        return table[(z @ place).long()]

    phi = torch.tensor([0.2, -0.1, 0.05], dtype=torch.float64)
    exact = enumerated_gradient(f, phi, k)
    u = torch.rand(400_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    pi = torch.sigmoid(k * phi)
    difference = f(antithetic_gates(pi, u)) - f(main_gates(pi, u))
    draws = arm_gradient(difference.unsqueeze(1), u, k)
    error = draws.std(dim=0) / math.sqrt(len(draws))
    assert ((draws.mean(dim=0) - exact).abs() < 4 * error).all()
    # One pass alone, the "AR" form, is unbiased too, with more than twice the variance.
    single = k * f(main_gates(pi, u)).unsqueeze(1) * (1 - 2 * u)
    assert ((single.mean(dim=0) - exact).abs() < 4 * single.std(dim=0) / math.sqrt(len(u))).all()
    assert (draws.var(dim=0) < 0.6 * single.var(dim=0)).all()


def test_training_steps_are_unbiased_on_a_network(make_context: MakeContext) -> None:
    """Mean of φ.grad over many steps against the enumeration of all 32 states, penalty included."""
    network, sites = tiny()
    context = make_context(strength=STRENGTH)
    method = attached((network, sites), context, k=2.0, initial_drop=0.4)
    gates = list(method.bernoulli_gates.values())
    plain = tiny()[0]
    batch = tiny_batch()

    @torch.no_grad()
    def loss_of(z: Tensor) -> Tensor:
        z = z.float()
        hidden = torch.relu(plain[0](batch.inputs) * z[:3])  # type: ignore[index]
        hidden = torch.relu(plain[2](hidden) * z[3:])  # type: ignore[index]
        return nn.functional.cross_entropy(plain[4](hidden), batch.targets)  # type: ignore[index]

    phi = torch.cat([gate.location.detach() for gate in gates])
    pi = torch.sigmoid(2.0 * phi)
    exact = enumerated_gradient(loss_of, phi, 2.0) + STRENGTH / context.train_size * 7 * 2 * pi * (1 - pi)
    network.train()
    draws = []
    for _ in range(1500):
        for gate in gates:
            gate.location.grad = None
        method.training_step(batch)
        draws.append(torch.cat([gate.location.grad for gate in gates if gate.location.grad is not None]))
    sample = torch.stack(draws).double()
    error = sample.std(dim=0) / math.sqrt(len(sample))
    assert ((sample.mean(dim=0) - exact).abs() < 4 * error).all()
    assert (exact.abs() > 4 * error).any()  # the test would notice a gradient of zero


def test_the_weights_get_the_gradient_of_the_main_pass(make_context: MakeContext) -> None:
    network, sites = tiny()
    method = attached((network, sites), make_context(strength=STRENGTH))
    network.train()
    batch = tiny_batch()
    loss = method.training_step(batch)
    given = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
    network.zero_grad()
    again = nn.functional.cross_entropy(network(batch.inputs), batch.targets)  # the same u as before
    again.backward()
    assert torch.equal(loss, again)
    assert not loss.requires_grad
    assert all(torch.equal(g, p.grad) for g, p in zip(given, network.parameters(), strict=True))


def noisy() -> tuple[nn.Module, list[Site]]:
    torch.manual_seed(1)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(8, 6, 3),
        nn.BatchNorm2d(6, momentum=None),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 36, 10),
    )
    return network, [
        Site("0", 8, "inner", ("0",), ("1",), ("1",), ("4",), 1.0, 1.0),
        Site("4", 6, "inner", ("4",), ("5",), ("5",), ("8",), 1.0, 1.0),
    ]


def test_the_antithetic_pass_moves_no_statistics_and_no_random_stream(make_context: MakeContext) -> None:
    """The buffers after a step are those of one ordinary pass with the same gates."""
    inputs, targets = torch.randn(16, 1, 8, 8), torch.arange(16) % 10
    network, sites = noisy()
    method = attached((network, sites), make_context(strength=STRENGTH), initial_drop=0.5)
    network.train()
    before = {name: value.clone() for name, value in network.named_buffers()}
    torch.manual_seed(9)
    method.training_step(Batch(inputs, targets))
    after = {name: value.clone() for name, value in network.named_buffers()}
    stream = torch.get_rng_state()
    gates = [gate.value for gate in method.gates.values()]

    with torch.no_grad():
        for name, value in network.named_buffers():
            value.copy_(before[name])
    torch.manual_seed(9)
    network(inputs)  # u as before: the main gates
    assert all(torch.equal(a, g.value) for a, g in zip(gates, method.gates.values(), strict=True))
    assert all(torch.equal(value, after[name]) for name, value in network.named_buffers())
    assert not torch.equal(after["1.running_mean"], before["1.running_mean"])
    assert torch.equal(torch.get_rng_state(), stream)


def test_equal_gates_give_exactly_zero(make_context: MakeContext) -> None:
    """Gates at π = 1 or 0 coincide in both passes, in a network with batch norm and dropout."""
    network, sites = noisy()
    method = attached((network, sites), make_context(strength=STRENGTH), k=5000.0)
    gates = list(method.bernoulli_gates.values())
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for gate in gates:
            sign = torch.rand(gate.size, generator=generator).sub(0.3).sign()
            gate.location.copy_(sign * (0.011 + torch.rand(gate.size, generator=generator)))
    network.train()
    passes = []
    network.register_forward_hook(lambda *call: passes.append(call))
    for _ in range(5):
        method.training_step(Batch(torch.randn(16, 1, 8, 8), torch.arange(16) % 10))
    assert len(passes) == 5  # no second pass where it could say nothing
    # π(1 − π) is zero in float32 too, so penalty and data both give exactly zero.
    assert all(gate.location.grad is not None and not gate.location.grad.any() for gate in gates)


def test_the_two_passes_agree_where_the_gates_do(make_context: MakeContext) -> None:
    """Without the short cut the difference is exactly zero as well: same statistics, same dropout."""
    network, sites = noisy()
    method = attached((network, sites), make_context(strength=STRENGTH), k=5000.0)
    network.train()
    batch = Batch(torch.randn(16, 1, 8, 8), torch.arange(16) % 10)
    other = method._antithetic(batch)
    main = nn.functional.cross_entropy(network(batch.inputs), batch.targets)
    assert torch.equal(other, main.detach())


def test_k_zero_is_dropout_at_one_half(make_context: MakeContext, monkeypatch: pytest.MonkeyPatch) -> None:
    context = make_context(strength=STRENGTH)
    network, sites = tiny()
    method = attached((network, sites), context)
    gates = list(method.bernoulli_gates.values())
    for gate in gates:
        gate.k = lambda: 0.0
        assert torch.equal(gate.probability(), torch.full((gate.size,), 0.5))
    monkeypatch.setattr(type(method), "k", property(lambda self: 0.0))
    network.train()
    drawn = []
    for _ in range(800):
        method.training_step(tiny_batch())
        drawn.append(torch.cat([gate.value for gate in gates]))
    assert all(gate.location.grad is not None and not gate.location.grad.any() for gate in gates)
    # 4,000 draws: the standard error is 0.008.
    assert torch.stack(drawn).mean().item() == pytest.approx(0.5, abs=0.032)


def test_k_infinite_is_ordinary_training(make_context: MakeContext) -> None:
    """Stage 1 of plasticity: the gradients are those of the plain network, and φ has none."""
    network, sites = tiny()
    context = make_context(strength=STRENGTH)
    method = attached((network, sites), context, "plasticity")
    context.phase = Phase("pretrain", 0.2)
    assert math.isinf(method.k)
    assert method.parameter_groups() == []
    network.train()
    method.training_step(tiny_batch())
    plain = tiny()[0]
    nn.functional.cross_entropy(plain(tiny_batch().inputs), tiny_batch().targets).backward()
    for one, other in zip(network.parameters(), plain.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)
    assert all(gate.location.grad is None for gate in method.gates.values())


def test_finite_k_of_5000_freezes_the_gates() -> None:
    """The code's infinity equals ours for |φ| > .01, which test_equal_gates shows for its gradient."""
    pi = torch.sigmoid(5000 * torch.tensor([0.011, -0.011, 0.5, -0.5]))
    for u in (torch.full((4,), 2.0**-24), torch.full((4,), 0.5), torch.full((4,), 1 - 2.0**-24)):
        assert main_gates(pi, u).tolist() == antithetic_gates(pi, u).tolist() == [1, 0, 1, 0]
    assert antithetic_gates(torch.ones(1), torch.zeros(1)).tolist() == [1]


def test_gates_are_shared_by_the_minibatch_and_new_in_each(make_context: MakeContext) -> None:
    network, sites = tiny()
    method = attached((network, sites), make_context(strength=STRENGTH), initial_drop=0.3)
    network.train()
    drawn = []
    for _ in range(1500):
        method.training_step(tiny_batch())
        drawn.append(torch.cat([gate.value for gate in method.gates.values()]))
    sample = torch.stack(drawn)
    assert sample.shape == (1500, 5)
    pi = torch.cat([gate.probability() for gate in method.gates.values()]).detach()
    assert ((sample.mean(dim=0) - pi).abs() < 4 * (pi * (1 - pi) / 1500).sqrt()).all()


def test_test_time_gates() -> None:
    method_gate = BernoulliGate(torch.tensor([0.5, 0.001, -0.001, -0.5]), lambda: 7.0)
    pi = torch.sigmoid(7 * torch.tensor([0.5, 0.001, -0.001, -0.5]))
    assert torch.equal(method_gate.draw(False, 1), torch.tensor([pi[0].item(), pi[1].item(), 0.0, 0.0]))
    method_gate.k = lambda: math.inf
    for training in (True, False):
        assert method_gate.draw(training, 1).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.InstanceNorm2d])
def test_statistics_at_rest_neither_move_nor_are_used(kind: Callable[..., nn.Module]) -> None:
    norm, inputs = kind(3, track_running_stats=True), 2 + torch.randn(4, 3, 5, 5)
    norm.running_mean = torch.tensor([7.0, 8.0, 9.0])  # far from the batch's
    with statistics_at_rest(norm):
        inside = norm(inputs)
    assert norm.running_mean.tolist() == [7.0, 8.0, 9.0]
    assert norm.running_var.tolist() == [1.0] * 3  # type: ignore[operator, union-attr]
    torch.testing.assert_close(inside, norm(inputs))
    assert norm.running_mean.tolist() != [7.0, 8.0, 9.0]


def test_statistics_at_rest_lets_go_also_after_an_error() -> None:
    norm = nn.BatchNorm1d(3)
    with statistics_at_rest(norm):
        assert not norm.track_running_stats
    assert norm.track_running_stats
    with pytest.raises(ValueError, match="expected"), statistics_at_rest(norm):
        norm(torch.zeros(1))
    assert norm.track_running_stats
