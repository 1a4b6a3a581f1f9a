"""The training settings of a workload. No torch here: a suite is checked before anything heavy is imported."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Recipe(BaseModel):
    """The same for every method of a workload.

    epochs: the whole budget: pretraining, sparsifying and fine-tuning together. schedule: of the learning rate, within
    each phase: `cosine` to zero, `step` (times `step_factor` at each of `step_at`, fractions of the phase), or
    `constant`. warmup_epochs: linear, at the start of each phase. weight_decay: as the optimiser of torch takes it.
    gradient_clip: on the global norm, 0 for none.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(gt=0)
    batch_size: int = Field(default=128, gt=0)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_at: tuple[float, ...] = (0.5, 0.75)
    step_factor: float = Field(default=0.1, gt=0)
    warmup_epochs: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=0.0, ge=0)
