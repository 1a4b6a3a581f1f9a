"""The learning-rate factor within a phase."""

from __future__ import annotations

import math

from bench.training.recipe import Recipe


def learning_rate_factor(recipe: Recipe, step: int, steps: int, steps_per_epoch: int) -> float:
    """Factor on the base rate for optimiser step `step` (from 0) of a phase of `steps`."""
    warmup = min(recipe.warmup_epochs * steps_per_epoch, steps)
    ramp = min(1.0, (step + 1) / warmup) if warmup else 1.0
    done = step / steps
    if recipe.schedule == "cosine":
        floor = recipe.learning_rate_floor
        factor = 0.5 * (1.0 + math.cos(math.pi * done))
        return ramp * (floor + (1.0 - floor) * factor)
    if recipe.schedule == "step":
        return ramp * recipe.step_factor ** sum(done >= at for at in recipe.step_at)
    return ramp
