"""The families of the papers at a tenth of their width, for images of 8×8 and more."""

from __future__ import annotations

from torch import nn

from bench.networks.resnet import BasicBlock


def lenet(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Convolutions without batch norm, each pooled, whose maps are flattened place by place into a hidden layer."""
    channels, height, width = input_shape
    layers: tuple[nn.Module, ...] = (nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    layers += (nn.Conv2d(6, 10, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    features = 10 * (height // 4) * (width // 4)
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 24), nn.ReLU(), nn.Linear(24, classes))


def vgg(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Convolutions with bias and batch norm, two to a pooling, and a hidden layer with batch norm behind them."""
    layers: list[nn.Module] = []
    channels = input_shape[0]
    for width in (6, 12):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        layers.append(nn.MaxPool2d(2))
    head = (nn.Linear(channels, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, classes))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *head)


def resnet(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Two stages of two blocks; between them the stream is halved and padded with zero channels (option A)."""
    stem = (nn.Conv2d(input_shape[0], 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
    blocks = (
        BasicBlock(channels, width, stride, project=False)
        for channels, width, stride in ((6, 6, 1), (6, 6, 1), (6, 12, 2), (12, 12, 1))
    )
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, classes))
