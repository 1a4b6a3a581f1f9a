"""The training settings of a workload. No torch here: a suite is checked before anything heavy is imported."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

LATER = (
    "learning_rate_floor",
    "label_smoothing",
    "decay_norm_and_bias",
    "augmentation",
    "precision",
    "accumulate_on_out_of_memory",
    "epoch_fraction",
)
"""Settings that came after the first records were published. At their defaults they are left out where a recipe is
written down, so that the ids, the groups of a table and the shared pretraining of such a recipe stay what they were."""


MOST = 10_000_000
"""Epochs, and images of a batch: more can only be a slip, and numbers without end are none that torch takes."""


class Recipe(BaseModel):
    """The same for every method of a workload.

    epochs: the whole budget: pretraining, sparsifying and fine-tuning together. epoch_fraction: how much of the train
    split an epoch goes through, drawn anew for each; a short budget of several such epochs still has the ends of epochs
    at which methods look at the validation split and change phase. schedule: of the learning rate, within
    each phase: `cosine` to `learning_rate_floor` times the base rate, `step` (times `step_factor` at each of `step_at`,
    fractions of the phase), or `constant`. warmup_epochs: linear, at the start of each phase. weight_decay: as the
    optimiser of torch takes it; decay_norm_and_bias: whether it acts on biases and on the scales and shifts of
    normalisations too (parameters of fewer than two dimensions). gradient_clip: on the global norm, 0 for none.
    label_smoothing: of the training loss alone; validation and test are scored by the plain cross-entropy.
    augmentation: `default` is what suits the data set, crops and flips for some and none for others; `resized-crop`,
    windows of any size brought to that of the image, and flips.
    precision: of the network's forward and backward passes in training; at `bf16` weights, optimiser and evaluation
    stay float32, and so does the training of a method that needs it. accumulate_on_out_of_memory: begin a training
    that does not fit anew with batches split in halves, quarters … whose gradients are summed, rather than fail.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    epochs: int = Field(gt=0, le=MOST)
    batch_size: int = Field(default=128, gt=0, le=MOST)
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)
    schedule: Literal["cosine", "step", "constant"] = "cosine"
    step_at: tuple[Annotated[float, Field(ge=0, le=1)], ...] = (0.5, 0.75)
    step_factor: float = Field(default=0.1, gt=0)
    warmup_epochs: float = Field(default=0.0, ge=0)
    gradient_clip: float = Field(default=0.0, ge=0)
    learning_rate_floor: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    decay_norm_and_bias: bool = True
    augmentation: Literal["default", "crop-and-flip", "resized-crop", "none"] = "default"
    precision: Literal["float32", "bf16"] = "float32"
    accumulate_on_out_of_memory: bool = False
    epoch_fraction: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _nesterov_has_a_momentum(self) -> Recipe:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self

    def epoch_images(self, train_size: int) -> int:
        """How many of `train_size` images an epoch goes through; at least one."""
        return max(1, round(self.epoch_fraction * train_size))

    def steps_per_epoch(self, train_size: int) -> int:
        """Batches of an epoch, the last of which may be smaller."""
        return math.ceil(self.epoch_images(train_size) / self.batch_size)

    @model_serializer(mode="wrap")
    def _leave_out_later_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        dumped: dict[str, Any] = dump(self)
        fields = type(self).model_fields
        for name in LATER:
            if name in dumped and getattr(self, name) == fields[name].default:
                del dumped[name]
        return dumped
