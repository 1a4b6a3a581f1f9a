"""What a training step of each method costs, in steps of plain training, one thread. Asserts nothing.

A step is all that a method has a say in: forward and backward passes, the optimisers, `after_step`. It is taken in the
middle of the phase in which the method does its own work, on random images of MNIST's shape, and timed in blocks that
alternate with blocks of plain training. What comes once an epoch or every hundred steps is not in it.

The process keeps the memory that it has freed (glibc). Otherwise two equal networks differ by a tenth, for as long as
they live, by whether the pages of their feature maps go back to the system after every step.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from torch import Tensor, nn

import methods
from bench import networks
from bench.compaction import Architecture, apply_architecture, find_sites
from bench.device import place
from bench.execute.pool import KEEP_FREED_MEMORY
from bench.measure.blocks import PairedSamples, interleave
from bench.measure.protocol import LatencyProtocol
from bench.measure.spread import speedup
from bench.offer import all_sites, offered_sites
from bench.training.optimizers import Optimizers
from bench.training.recipe import Recipe
from bench.training.thinning import take_away
from methods.base import Batch, Phase, Site, StepContext
from methods.beta_bernoulli import BetaBernoulli

SHAPE, CLASSES, BATCH, BATCHES = (1, 28, 28), 10, 128, 4
STEPS_PER_EPOCH, EPOCHS, TRAIN_SIZE = 422, 100, 54_000
RECIPE = Recipe(epochs=EPOCHS, batch_size=BATCH, optimizer="sgd", learning_rate=1e-3, weight_decay=5e-4)
"""A small rate: on random images a larger one would soon bring infinities, which have a speed of their own."""

PENALTY, ARM, OTHER = 1.15, 1.6, 1.1
"""Bounds of the ratio: of penalties and gates, of two forward passes, of what does next to nothing in a step."""


@dataclass(frozen=True)
class Arm:
    """phase: in which the method works; the one it has, where there is only one. gone: how much of every site the
    posterior of beta-Bernoulli dropout has given up before, which the training then takes away."""

    method: str
    bound: float
    phase: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    network: str = "lenet5"
    gone: float = 0.0

    def __str__(self) -> str:
        settings = " ".join(str(value) for value in self.config.values())
        without = f" without {self.gone:.0%} of the units" if self.gone else ""
        return f"{self.method} {settings}".strip() + without


ARMS = [
    Arm("dense", OTHER),
    Arm("thin-dense", OTHER),
    Arm("random", OTHER, "finetune"),
    *(
        Arm("magnitude", OTHER, phase, {"granularity": granularity, "schedule": schedule})
        for granularity in ("unit", "weight")
        for schedule, phase in (("one-shot", "finetune"), ("gradual", "sparsify"))
    ),
    *(Arm("targeted-dropout", PENALTY, config={"granularity": kind}) for kind in ("unit", "weight")),
    Arm("targeted-dropout", PENALTY, config={"granularity": "unit", "unit_noise": "weight"}),
    Arm("hard-concrete", PENALTY),
    Arm("beta-bernoulli", PENALTY, "sparsify"),
    Arm("dependent-beta-bernoulli", PENALTY, "dependent"),
    Arm("dependent-beta-bernoulli", PENALTY, "dependent", gone=0.5),
    Arm("group-lasso", PENALTY, "sparsify"),
    Arm("network-slimming", PENALTY, "sparsify", network="digits-cnn"),
    Arm("heterogeneous-sensitivity", PENALTY, "sparsify"),
    Arm("layer-sparsity", PENALTY, "sparsify"),
    Arm("layer-sparsity", PENALTY, "sparsify", network="mlp-deep"),
    Arm("branch-magnitude", OTHER, "finetune", network="resnet20"),
    Arm("l0-arm", ARM),
    Arm("plasticity", ARM, "plastic"),
    Arm("plasticity", ARM, "plastic", {"mode": "expand"}),
    Arm("serene", OTHER, config={"sensitivity": "none"}),
    Arm("serene", OTHER, config={"sensitivity": "local"}),
    Arm("serene", 1.6, config={"sensitivity": "lower-bound"}),
    Arm("serene", 5.0, config={"sensitivity": "full"}),
]


class Training:
    """One network under training by one method, held in the middle of a phase."""

    def __init__(self, arm: Arm, batches: list[Batch]) -> None:
        torch.manual_seed(0)
        example = torch.zeros(1, *SHAPE)
        network = networks.build(arm.network, SHAPE, CLASSES)
        self.method = methods.create(arm.method, **arm.config)
        strength = self.method.strengths[len(self.method.strengths) // 2]
        shape = self.method.shape(find_sites(network, example), strength)
        if shape is not None:
            kept = {site: mask.nonzero().flatten().tolist() for site, mask in shape.kept.items()}
            network = apply_architecture(network, Architecture(kept=kept), example)
        self.network: nn.Module = place(network, torch.device("cpu")).train()
        self.context = StepContext(
            strength=None if self.method.traits.trains_once else strength,
            steps=EPOCHS * STEPS_PER_EPOCH,
            steps_per_epoch=STEPS_PER_EPOCH,
            train_size=TRAIN_SIZE,
            device=torch.device("cpu"),
            generator=torch.Generator().manual_seed(0),
            task_loss=nn.functional.cross_entropy,
            phase=Phase("attach", 0.0),
        )
        sites = offered_sites(all_sites(network, example), self.method, streams=True)
        self.method.attach(network, sites, self.context)
        self._go_to(arm.phase, sites, arm.gone, example)
        self.optimizers = Optimizers(network, self.method.parameter_groups(), RECIPE, 1.0)
        self._batches, self._at = batches, 0

    def _go_to(self, name: str, sites: Sequence[Site], gone: float, example: Tensor) -> None:
        """Begin the phases up to the one of that name, and stand in its middle."""
        context, before = self.context, 0.0
        phases = self.method.phases(EPOCHS)
        for phase in phases:
            context.phase = phase
            context.phase_steps = round(phase.fraction * context.steps)
            context.phase_step = context.phase_steps // 2
            context.step = round(before * context.steps) + context.phase_step
            context.learning_rate = RECIPE.learning_rate
            context.learning_rates = (RECIPE.learning_rate,) * context.phase_steps
            if gone and isinstance(self.method, BetaBernoulli) and phase.name == name:
                self._give_up(gone)
                take_away(self.network, self.method, sites, self.method.removable(), example)
            self.method.start_phase(phase)
            before += phase.fraction
            if phase.name == name or len(phases) == 1:
                return
        raise ValueError(f"{self.method.name} has no phase {name!r}")

    def _give_up(self, gone: float) -> None:
        """A keep probability of next to nothing for the first units of every site."""
        assert isinstance(self.method, BetaBernoulli)
        with torch.no_grad():
            for a_uc in self.method.by_site(self.method.posterior.a_uc).values():
                a_uc[: round(gone * len(a_uc))] = -10.0

    def step(self) -> None:
        """As the training loop takes it, without the loading of the batch."""
        batch = self._batches[self._at % len(self._batches)]
        self._at += 1
        self.optimizers.zero_grad()
        self.method.training_step(batch)
        self.optimizers.step()
        self.context.step += 1
        self.context.phase_step += 1
        self.method.after_step()


def timed(call: Callable[[], None]) -> Callable[[], float]:
    """Milliseconds of processor time of one call: what else runs on the machine does not count."""

    def sample() -> float:
        began = time.process_time()
        call()
        return (time.process_time() - began) * 1e3

    return sample


def random_batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    return [
        Batch(
            torch.randn(BATCH, *SHAPE, generator=generator),
            torch.randint(CLASSES, (BATCH,), generator=generator),
        )
        for _ in range(BATCHES)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("methods", nargs="*", help="only these methods")
    parser.add_argument("--blocks", type=int, default=12)
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in KEEP_FREED_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **KEEP_FREED_MEMORY})
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    batches = random_batches()
    protocol = LatencyProtocol(blocks=options.blocks, block_seconds=1e-3, block_samples=5)
    print("a training step in steps of plain training, one thread, batches of 128; 95 % interval")
    for arm in ARMS:
        if options.methods and arm.method not in options.methods:
            continue
        plain, ours = Training(Arm("dense", OTHER, network=arm.network), batches), Training(arm, batches)
        for _ in range(3):
            plain.step()
            ours.step()
        samples = interleave(timed(plain.step), timed(ours.step), protocol)
        ratio = speedup(PairedSamples(dense=samples.compact, compact=samples.dense))
        verdict = "within" if ratio.value <= arm.bound else "ABOVE"
        print(
            f"  {arm!s:<54} {arm.network:<11} {ratio.value:5.2f} ({ratio.low:.2f} … {ratio.high:.2f})  "
            f"bound {arm.bound:<4g}  {verdict}",
            flush=True,
        )


if __name__ == "__main__":
    main()
