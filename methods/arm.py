"""Bernoulli gates and the ARM estimator of their gradient.

Yin & Zhou, ARM: Augment-REINFORCE-Merge, arXiv 1807.11143, as Li & Ji use it (L0-ARM, arXiv 1904.04432; Neural
Plasticity Networks, arXiv 1908.08118). With π_j = σ(kφ_j), u_j ~ U(0, 1) and f the mean task loss of a minibatch,

    ∂/∂φ_j E_z f(z) ≈ k · [f(1[u > 1 − π]) − f(1[u < π])] · (u_j − ½),

unbiased. The pass with the gates 1[u < π] also gives the gradient of the weights; the antithetic pass with the gates
1[u > 1 − π] needs no graph. u is drawn once per gate and minibatch: f is a mean over the minibatch.

Deviations from the released code, with reasons:
- Both passes run with batch norm in training mode; the antithetic one leaves the running statistics alone. The code
  evaluates it with the running statistics, so that the difference of the two losses is not due to the gates alone.
  Both see the same noise of the network itself (dropout). Where the gates of both passes coincide the difference is
  zero and the antithetic pass is left out.
- The gradient of φ enters as a term c·φ with constant c in the loss, not by writing to `.grad` in the forward pass: it
  survives clearing, clipping and adding up of gradients.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn

from methods.base import Batch
from methods.l0_penalty import L0Gate, L0Method

ANTITHETIC_PASS = 0.5
"""What a pass without a graph costs, in passes with one: for the estimate of time."""


NOISE = 1e-2
"""Standard deviation of φ about its start."""


def starting_noise(size: int, k: float, generator: torch.Generator) -> Tensor:
    """(size,). Narrower where the gates are steeper than usual, k > 7, so that kφ stays near where it is to start."""
    draws = torch.randn(size, generator=generator, device=generator.device)
    return NOISE * min(1.0, 7.0 / k) * draws


def main_gates(pi: Tensor, u: Tensor) -> Tensor:
    """1[u < π], in the type of `pi`."""
    return (u < pi).to(pi)


def antithetic_gates(pi: Tensor, u: Tensor) -> Tensor:
    """1[u ≥ 1 − π], in the type of `pi`. With ≥ as u may be 0 but not 1: at π = 1 both gates are then always open."""
    return (u >= 1 - pi).to(pi)


def arm_gradient(difference: Tensor, u: Tensor, k: float) -> Tensor:
    """k · difference · (u − ½), (size,). difference: f of the antithetic pass less f of the main pass, a scalar."""
    return k * difference * (u - 0.5)


class BernoulliGate(L0Gate):
    """z ~ Bernoulli(π), π = σ(kφ); `location` is φ. At test time z = π where π ≥ ½, otherwise 0.

    k: asked for at each use, as it changes while training goes on. At infinity z = 1[φ > 0] in every mode.
    """

    def __init__(self, phi: Tensor, k: Callable[[], float]) -> None:
        super().__init__(len(phi))
        self.location = nn.Parameter(phi)
        self.k = k
        self.u = torch.full_like(phi, 0.5)
        self.antithetic = False

    def sample(self, generator: torch.Generator) -> None:
        """New u, for the passes to come in training mode."""
        self.u = torch.rand(self.size, generator=generator, device=self.location.device)

    def probability(self) -> Tensor:
        k = self.k()
        if math.isinf(k):
            return (self.location > 0).to(self.location)
        return torch.sigmoid(k * self.location)

    @torch.no_grad()
    def draw(self, training: bool, batch: int) -> Tensor:
        pi = self.probability()
        if math.isinf(self.k()):
            return pi
        if not training:
            return pi * (pi >= 0.5)
        return antithetic_gates(pi, self.u) if self.antithetic else main_gates(pi, self.u)

    def coincide(self) -> Tensor:
        """Whether both passes have the same gates, a bool scalar."""
        with torch.no_grad():
            pi = self.probability()
            return (main_gates(pi, self.u) == antithetic_gates(pi, self.u)).all()


class ArmMethod(L0Method):
    """Base of the methods whose gates learn by ARM: by a difference of two losses, too small for bf16."""

    autocast = False

    @property
    @abstractmethod
    def k(self) -> float:
        """In the present phase; infinity where the gates are fixed at 1[φ > 0]."""

    @property
    def gates_learn(self) -> bool:
        return bool(self.gates) and not math.isinf(self.k)

    @property
    def bernoulli_gates(self) -> Mapping[str, BernoulliGate]:
        return cast(Mapping[str, BernoulliGate], self.gates)

    def training_step(self, batch: Batch) -> Tensor:
        if not self.gates_learn:
            return super().training_step(batch)
        gates = self.bernoulli_gates.values()
        for gate in gates:
            gate.sample(self.context.generator)
        antithetic = (
            None if bool(torch.stack([g.coincide() for g in gates]).all()) else self._antithetic(batch)
        )
        loss = self.context.task_loss(self.network(batch.inputs), batch.targets)
        penalty = self.penalty()
        assert penalty is not None
        total = loss + penalty
        if antithetic is not None:
            difference = antithetic - loss.detach()
            for gate in gates:
                total = total + (arm_gradient(difference, gate.u, self.k) * gate.location).sum()
        total.backward()
        return loss.detach()

    @torch.no_grad()
    def _antithetic(self, batch: Batch) -> Tensor:
        """f(1[u > 1 − π]), a scalar; neither random streams nor running statistics move."""
        gates = self.bernoulli_gates.values()
        devices = [self.context.device] if self.context.device.type == "cuda" else []
        for gate in gates:
            gate.antithetic = True
        try:
            with torch.random.fork_rng(devices), statistics_at_rest(self.network):
                return self.context.task_loss(self.network(batch.inputs), batch.targets)
        finally:
            for gate in gates:
                gate.antithetic = False


@contextmanager
def statistics_at_rest(network: nn.Module) -> Iterator[None]:
    """Normalisations in training mode go on normalising by the batch, but leave their running statistics alone."""
    tracking = [m for m in network.modules() if m.training and getattr(m, "track_running_stats", False)]
    held = [(module, module.running_mean, module.running_var) for module in tracking]
    for module in tracking:
        module.track_running_stats = False  # type: ignore[assignment]
        module.running_mean = module.running_var = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, mean, variance in held:
            module.track_running_stats = True  # type: ignore[assignment]
            module.running_mean, module.running_var = mean, variance
