"""ImageNet's folder, with a dozen images in place of a million."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import methods
from bench import data
from bench.data.batches import Normalise, ordered, shuffled
from bench.data.image_files import ImageFiles
from bench.data.sets.imagenet import MEAN, load_imagenet
from bench.errors import BadInput
from bench.filters import Filters
from bench.plan import make_plan
from bench.suite import Suite
from bench.training.loop import Loop
from bench.training.phases import plan_phases
from bench.training.recipe import Recipe

CLASSES = ("n01", "n02", "n03")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of a class are of one colour, red of 50, 100, 150; one is grey, one upright, one smaller than a window."""
    sizes = [(300, 260), (260, 400), (40, 30), (256, 256)]
    for part, count in (("train", 4), ("val", 2)):
        for at, name in enumerate(CLASSES):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((*sizes[number][::-1], 3), dtype=np.uint8)
                pixels[:, :, 0] = 50 * (at + 1)
                Image.fromarray(pixels).save(folder / f"{number}.JPEG", quality=95)
    return tmp_path


def test_split_into_three_and_read_when_asked_for(root: Path) -> None:
    dataset = data.load("imagenet", root)
    assert isinstance(dataset.train.images, ImageFiles)
    assert dataset.input_shape == (3, 224, 224)
    assert dataset.classes == 3
    assert len(dataset.train) + len(dataset.validation) == 12
    assert len(dataset.validation) >= 3
    assert torch.equal(dataset.mean, torch.tensor(MEAN))
    test = data.load_test("imagenet", root)
    assert dataset.test_size == len(test) == 6
    plain = Normalise.by(torch.zeros(3), torch.ones(3))
    seen = [0] * 3
    for batch in shuffled(dataset.train, 4, torch.Generator().manual_seed(0), plain):
        for image, label in zip(batch.inputs, batch.targets.tolist(), strict=True):
            assert image[0].mean().item() * 255 == pytest.approx(50 * (label + 1), abs=3)
            seen[label] += 1
    assert sum(seen) == len(dataset.train)
    labels = torch.cat([batch.targets for batch in ordered(test, 4, plain)])
    assert torch.equal(labels, test.labels)
    assert dataset.validation.images[:2].shape == (2, 3, 224, 224)


def test_the_middle_of_the_image_at_torchvisions_size(tmp_path: Path) -> None:
    from torchvision.transforms import functional

    noise = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    smooth = Image.fromarray(noise).resize((420, 300)).resize((60, 40)).resize((420, 300))
    smooth.save(tmp_path / "a.png")
    (found,) = ImageFiles((tmp_path / "a.png",), 224, 256)[:1]
    expected = functional.center_crop(functional.resize(smooth, [256]), [224])
    close = (found.int() - torch.from_numpy(np.array(expected)).permute(2, 0, 1).int()).abs()
    assert close.max() <= 8
    assert close.float().mean() < 1


def test_a_network_trains_on_it(root: Path) -> None:
    dataset = data.load("imagenet", root)
    torch.manual_seed(0)
    network = nn.Sequential(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3 * 49, 3))
    recipe = Recipe(epochs=2, batch_size=4, augmentation="resized-crop")
    method = methods.create("dense")
    loop = Loop(network, method, [], dataset, recipe, 0, torch.device("cpu"))
    loop.run(plan_phases(method.phases(2), 2))
    assert loop.progress.epochs == {"train": 2}


def test_the_listing_is_the_fingerprint(root: Path) -> None:
    before = data.load("imagenet", root).fingerprint
    image = root / "imagenet" / "train" / "n01" / "0.JPEG"
    image.write_bytes(image.read_bytes() + b"\0")
    data.registry._prepared.cache_clear()
    assert data.load("imagenet", root).fingerprint != before


def test_what_is_missing_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="needs a data root"):
        load_imagenet(None)
    with pytest.raises(BadInput, match=r"imagenet/train: no such folder.*val/<class>"):
        load_imagenet(tmp_path / "elsewhere")
    (root / "imagenet" / "val" / "n99").mkdir()
    with pytest.raises(BadInput, match=r"n99.*not in train"):
        load_imagenet(root)
    (root / "imagenet" / "train" / "n99").mkdir()
    with pytest.raises(BadInput, match="n99: no images"):
        load_imagenet(root)


def test_a_damaged_image_is_named_when_it_is_read(root: Path) -> None:
    damaged = root / "imagenet" / "val" / "n02" / "1.JPEG"
    damaged.write_bytes(b"no image")
    test = load_imagenet(root).test
    with pytest.raises(BadInput, match=r"n02/1\.JPEG: is not a readable image"):
        list(ordered(test, 4, Normalise.by(torch.zeros(3), torch.ones(3))))


def test_a_plan_knows_that_images_stay_in_files(root: Path) -> None:
    """So that on a GPU a cell has it alone."""

    def plan(dataset: str) -> bool:
        workload = {"dataset": dataset, "network": "digits-cnn", "recipe": {"epochs": 1}}
        suite = {"title": "one cell", "workloads": [workload], "methods": [{"name": "dense"}]}
        return make_plan(Suite.model_validate(suite), Filters(), root).reads_files

    assert plan("imagenet")
    assert not plan("digits")
