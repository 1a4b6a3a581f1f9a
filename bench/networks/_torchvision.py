"""torchvision's classification models by name: `torchvision:resnet50`, `torchvision:resnet50@DEFAULT`.

What follows @ names pretrained weights. They are a start of training, no part of the architecture: a network is built
without them, and `pretrained_state` gets them where a training begins.
"""

from __future__ import annotations

import re
from typing import Any, cast

from torch import Tensor, nn

from bench.errors import BadInput, nearest
from bench.networks._attention import separate_attention

PREFIX = "torchvision:"
_AUXILIARY = ("AuxLogits.", "aux1.", "aux2.")
_OLD_DENSENET_KEY = re.compile(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d\.)")


def model_names() -> list[str]:
    """All classification models of the installed torchvision, sorted."""
    from torchvision import models

    return sorted(models.list_models(module=models))


def build_model(name: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The architecture of `torchvision:MODEL[@WEIGHTS]`, with torchvision's own initialisation, whatever stands after
    @. Without auxiliary classifiers; vision transformers for the size of the images, their attention in parts.

    Raises BadInput where there is no such model, or it cannot take the images or give the classes.
    """
    from torchvision import models

    model, weights = _parsed(name)
    channels, height, width = input_shape
    if channels != 3:
        raise BadInput(
            f"torchvision's models take images with 3 channels, these have {channels}; "
            "package.module:factory can adapt one"
        )
    if weights is not None and (pretrained := len(weights.meta["categories"])) != classes:
        raise BadInput(f"the weights {weights.name} know {pretrained} classes, the data set has {classes}")
    settings: dict[str, Any] = {"num_classes": classes}
    if model in ("googlenet", "inception_v3"):
        # The weights come from another framework, which scaled its images otherwise.
        settings |= {"aux_logits": False, "init_weights": True, "transform_input": weights is not None}
    elif model.startswith("vit_"):
        if height != width:
            raise BadInput(f"needs square images, got {height}×{width}")
        settings["image_size"] = height
    elif model == "maxvit_t":
        settings["input_size"] = (height, width)
    return separate_attention(cast(nn.Module, models.get_model(model, weights=None, **settings)))


def has_weights(name: str) -> bool:
    """Whether a name of a network asks for pretrained weights."""
    return name.startswith(PREFIX) and "@" in name


def pretrained_state(name: str) -> dict[str, Tensor]:
    """The weights that a name asks for, from torchvision's site or the folder where torch keeps what it got there;
    the auxiliary classifiers left out. Raises BadInput where they cannot be had."""
    _, weights = _parsed(name)
    assert weights is not None
    try:
        # weights_only: of a pickle, tensors and nothing that runs.
        state = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:
        why = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadInput(
            f"the weights {weights.name} cannot be had from {weights.url} ({why}); "
            "get the file elsewhere and put it into the folder `checkpoints` of torch.hub.get_dir()"
        ) from error
    return {
        _OLD_DENSENET_KEY.sub(r"\1\2", key): value
        for key, value in state.items()
        if not key.startswith(_AUXILIARY)
    }


def _parsed(name: str) -> tuple[str, Any]:
    """The model, and its weights (a member of torchvision's enumeration) or None."""
    from torchvision import models

    model, mark, weights = name.removeprefix(PREFIX).partition("@")
    if model not in model_names():
        raise BadInput(f"torchvision has no classification model {model!r}{nearest(model, model_names())}")
    if not mark:
        return model, None
    members = models.get_model_weights(model).__members__
    if weights not in members:
        raise BadInput(f"torchvision has no weights {weights!r} for {model}{nearest(weights, members)}")
    return model, members[weights]
