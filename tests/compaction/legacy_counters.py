"""The operation and memory counters of the released code of beta-Bernoulli dropout, for the published columns alone.

Written after OpenXAIProject/Variational_Dropouts at 61ac484 (`tf_`) and ICLR2020anonymous/bbdrop at 99fa411 (`torch_`);
the papers file, §3d, says what is wrong with them: a convolution counts two operations for each multiply-accumulate and
a dense layer one, padded convolutions count as unpadded ones, one pooling has the wrong side. The suite itself counts
by `bench.measure.macs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

CLASSES = 10
VGG_STAGES = ((32, 2), (16, 2), (8, 3), (4, 3), (2, 3))
"""Side of the maps and number of the convolutions, each stage ending with a 2×2 pooling."""


def _tf_conv(inputs: int, maps: int, side: int, kernel: int) -> int:
    """2n − 1 operations a place for n weights, a ReLU a place, a bias a map; never padded."""
    places = (side - kernel + 1) ** 2
    return maps * (places * 2 * kernel**2 * inputs + 1)


def _tf_dense(inputs: int, outputs: int, relu: bool = True) -> int:
    return inputs * outputs + outputs * (2 if relu else 1)


def tf_mlp(pixels: int, first: int, second: int) -> int:
    return _tf_dense(pixels, first) + _tf_dense(first, second) + _tf_dense(second, CLASSES, relu=False)


def tf_lenet5(first: int, second: int, features: int, hidden: int) -> int:
    """A pooling counts one operation for each place that it leaves."""
    return (
        _tf_conv(1, first, 28, 5)
        + first * 12**2
        + _tf_conv(first, second, 12, 5)
        + second * 4**2
        + _tf_dense(features, hidden)
        + _tf_dense(hidden, CLASSES, relu=False)
    )


def tf_vgg(units: Sequence[int]) -> int:
    """units: of 13 convolutions, of the features that enter the hidden layer, of the hidden layer."""
    total = 0
    for inputs, maps, side, last in _convolutions(units):
        total += _tf_conv(inputs, maps, side, 3) + maps  # batch norm
        if last:
            total += maps * (side // 2 if side != 8 else 2) ** 2  # the third pooling's maps are taken for 4×4
        else:
            total += maps  # dropout
    features, hidden = units[13:]
    return total + features + _tf_dense(features, hidden) + hidden + _tf_dense(hidden, CLASSES, relu=False)


def _torch_conv(inputs: int, maps: int, places: int, kernel: int) -> int:
    """2n − 1 operations a place for n weights, one for the bias and one for the ReLU."""
    return maps * places * (2 * kernel**2 * inputs + 1)


def _torch_dense(inputs: int, outputs: int, activation: bool = True) -> int:
    return 2 * inputs * outputs + (outputs if activation else 0)


def torch_mlp(pixels: int, first: int, second: int) -> int:
    return _torch_dense(pixels, first) + _torch_dense(first, second) + _torch_dense(second, CLASSES, False)


def torch_lenet5(first: int, second: int, features: int, hidden: int) -> int:
    """A pooling counts one operation for each place that it takes."""
    return (
        _torch_conv(1, first, 24**2, 5)
        + first * 24**2
        + _torch_conv(first, second, 8**2, 5)
        + second * 8**2
        + _torch_dense(features, hidden)
        + _torch_dense(hidden, CLASSES, False)
    )


def torch_vgg(units: Sequence[int]) -> int:
    """The logits have an activation here."""
    total = 0
    for inputs, maps, side, last in _convolutions(units):
        total += _torch_conv(inputs, maps, side**2, 3) + (maps * side**2 if last else 0)
    features, hidden = units[13:]
    return total + _torch_dense(features, hidden) + _torch_dense(hidden, CLASSES)


def tf_vgg_memory(units: Sequence[int]) -> int:
    """Of a convolution its weights, biases, batch norm and the patches that it takes its input apart into."""
    total = 0
    for inputs, maps, side, _ in _convolutions(units):
        total += 9 * inputs * (side**2 + maps) + 3 * maps
    features, hidden = units[13:]
    return total + features * hidden + 3 * hidden + hidden * CLASSES + CLASSES


def _convolutions(units: Sequence[int]) -> Iterator[tuple[int, int, int, bool]]:
    """Channels that enter and leave, side of the maps, whether a pooling follows."""
    inputs, at = 3, 0
    for side, depth in VGG_STAGES:
        for layer in range(depth):
            yield inputs, units[at], side, layer == depth - 1
            inputs, at = units[at], at + 1
