"""torchvision's models by name: built, refused, stored and read again, and never downloaded in passing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models import _api

from bench import networks
from bench.compaction import compact, load_compact, save_compact
from bench.errors import BadInput
from bench.networks import _torchvision
from tests.compaction.small_networks import random_plan, randomise

SHAPE = (3, 32, 32)
SMALL = "shufflenet_v2_x0_5"


@pytest.fixture(autouse=True)
def shelf(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """In place of torchvision's site: what a URL gives; a URL that is not there fails."""
    found: dict[str, dict[str, Tensor]] = {}

    def load(url: str, **how: Any) -> dict[str, Tensor]:
        assert how["weights_only"]
        assert how["check_hash"]
        if url not in found:
            raise OSError("no route to host")
        return found[url]

    monkeypatch.setattr(_api, "load_state_dict_from_url", load)
    return found


def url_of(model: str) -> str:
    return str(models.get_model_weights(model).DEFAULT.url)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("resnet18", (3, 16, 24)), ("googlenet", SHAPE), ("inception_v3", (3, 75, 75)), ("vit_b_32", SHAPE)],
)
def test_models_by_name(name: str, shape: tuple[int, int, int]) -> None:
    """Auxiliary classifiers would give several outputs in training; a transformer is made for one size."""
    with torch.device("meta"):
        network = networks.build(f"torchvision:{name}", shape, 7)
        assert network.training
        assert network(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "classes", "says"),
    [
        (
            "resnet81",
            SHAPE,
            10,
            "torchvision has no classification model 'resnet81' (did you mean 'resnet18'?)",
        ),
        ("resnet18", (1, 32, 32), 10, "take images with 3 channels, these have 1"),
        ("resnet18@V7", SHAPE, 1000, "torchvision has no weights 'V7' for resnet18"),
        ("resnet18@DEFAULT", SHAPE, 10, "the weights IMAGENET1K_V1 know 1000 classes, the data set has 10"),
        ("vit_b_32", (3, 32, 64), 10, "needs square images, got 32×64"),
        ("vit_b_32", (3, 40, 40), 10, "cannot be built for images of 40×40"),
        ("alexnet", SHAPE, 10, "does not run on images of 32×32"),
        ("inception_v3", SHAPE, 10, "does not run on images of 32×32"),
    ],
)
def test_refusals(name: str, shape: tuple[int, int, int], classes: int, says: str) -> None:
    with pytest.raises(BadInput) as caught, torch.device("meta"):
        networks.build(f"torchvision:{name}", shape, classes)
    line = str(caught.value)
    assert line.startswith(f"network 'torchvision:{name}': ")
    assert says in line
    assert "\n" not in line


def test_a_compact_network_is_stored_and_read_again_without_a_download(tmp_path: Path) -> None:
    name = f"torchvision:{SMALL}@DEFAULT"
    network = randomise(networks.build(name, SHAPE, 1000)).eval()
    example = torch.rand(2, *SHAPE)
    result = compact(network, random_plan(network, example), example)
    assert result.certificate.passed
    save_compact(tmp_path, result, name, SHAPE, 1000)
    assert torch.equal(load_compact(tmp_path)(example), result.network(example))


def test_pretrained_weights(shelf: dict[str, dict[str, Tensor]]) -> None:
    torch.manual_seed(1)
    trained = networks.build(f"torchvision:{SMALL}", SHAPE, 1000)
    shelf[url_of(SMALL)] = trained.state_dict()
    network = networks.build(f"torchvision:{SMALL}@DEFAULT", SHAPE, 1000)
    networks.load_start(network, f"torchvision:{SMALL}@DEFAULT")
    pairs = zip(network.state_dict().values(), trained.state_dict().values(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_weights_that_cannot_be_had() -> None:
    with pytest.raises(BadInput, match=r"IMAGENET1K_V1 cannot be had from https://.*no route.*torch\.hub"):
        networks.load_start(nn.Identity(), f"torchvision:{SMALL}@DEFAULT")


def test_old_keys_and_auxiliary_classifiers(shelf: dict[str, dict[str, Tensor]]) -> None:
    one = torch.ones(1)
    shelf[url_of("densenet121")] = {
        "features.denseblock1.denselayer12.norm.1.weight": one,
        "features.norm5.bias": one,
    }
    shelf[url_of("googlenet")] = {"aux1.fc1.weight": one, "fc.weight": one}
    densenet, googlenet = (
        _torchvision.pretrained_state(f"torchvision:{name}@DEFAULT") for name in ("densenet121", "googlenet")
    )
    assert set(densenet) == {"features.denseblock1.denselayer12.norm1.weight", "features.norm5.bias"}
    assert set(googlenet) == {"fc.weight"}


def test_weights_of_another_framework_scale_their_images() -> None:
    with torch.device("meta"):
        assert not networks.build("torchvision:googlenet", SHAPE, 1000).transform_input
        assert networks.build("torchvision:googlenet@DEFAULT", SHAPE, 1000).transform_input
