"""Where the channels of a tensor are after an operation that only moves its elements: a view, a permutation, a chunk.

Nothing is known of any single operation: it runs on the numbers of the elements, and where each of them has gone is
read off. That follows a channel shuffle, or the windows of a transformer, as well as a flatten.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from bench.compaction.own_layers import Select

_MODULES = (nn.Flatten, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle, nn.ZeroPad2d, Select)
_SIZED = {torch.reshape, "view", "reshape", "expand"}
"""Those that are told the sizes of their result: the size of the channels may stand in the code as a number."""

_WORDS = (
    "flatten", "transpose", "permute", "chunk", "split", "unsqueeze", "movedim", "swapaxes", "swapdims",
    "unbind", "roll", "flip", "channel_shuffle", "tensor_split",
)  # fmt: skip
COPIES = {"contiguous", "clone"}
"""Known as operations that change nothing too."""

_FUNCTIONS: set[Any] = {operator.getitem, *COPIES, F.pad, F.channel_shuffle, *_WORDS, *_SIZED} | {
    getattr(torch, word) for word in _WORDS if hasattr(torch, word)
}
Moved = Tensor | tuple[Tensor, ...]


def is_move(node: fx.Node, module: nn.Module | None) -> bool:
    """Whether a node moves elements, and at most adds zeros."""
    if module is not None:
        return type(module) in _MODULES
    if node.target is F.pad:
        mode = node.kwargs.get("mode", node.args[2] if len(node.args) > 2 else "constant")
        value = node.kwargs.get("value", node.args[3] if len(node.args) > 3 else None)
        return bool(mode == "constant" and (value is None or value == 0))
    return node.target in _FUNCTIONS


def numbered(shape: tuple[int, ...]) -> Tensor:
    """Every element of a tensor by its number, from 1 on; 0 is left for zeros that are put in."""
    count = 1
    for size in shape:
        count *= size
    return torch.arange(1, count + 1, dtype=torch.float64).reshape(shape)


def move(node: fx.Node, module: nn.Module | None, source: Moved, numbers: Mapping[fx.Node, Any]) -> Moved:
    """What the node makes of the numbered elements. numbers: of the sizes it takes."""
    first, *others = node.all_input_nodes
    given = {first: source, **{n: numbers[n] for n in others}}
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: given[n])
    if module is not None:
        moved: Any = module(*args, **kwargs)
    elif node.op == "call_method":
        receiver, *rest = args
        moved = getattr(receiver, str(node.target))(*rest, **kwargs)
    else:
        function: Callable[..., Any] = node.target  # type: ignore[assignment]
        moved = function(*args, **kwargs)
    return tuple(moved) if isinstance(moved, tuple | list) else moved


@dataclass(frozen=True)
class Places:
    """axis: of the channels, in the result. index: (channels of the result,) int64, the channel of the source that
    each is, or -1 for zeros. uniform: a channel that is constant stays so. plain: the result is the source with its
    channels chosen by `index`, and nothing else."""

    axis: int
    index: Tensor
    uniform: bool
    plain: bool


def places(moved: Tensor, shape: tuple[int, ...], axis: int) -> Places | None:
    """Where the channels, on `axis` of a tensor of `shape`, are in `moved`; None where they are on several axes, or
    on none.

    moved: the result of `move` on the numbered elements of that tensor.
    """
    behind = 1
    for size in shape[axis + 1 :]:
        behind *= size
    numbers = moved.long() - 1
    channel = torch.where(numbers >= 0, (numbers // behind) % shape[axis], -1)
    if channel.numel() == 0:
        return None
    alone = int(channel.max()) == int(torch.where(channel < 0, shape[axis], channel).min())
    order = sorted(range(1, moved.dim()), key=lambda d: (moved.shape[d] != shape[axis], d != axis, d))
    if alone and shape[axis] > 1:  # a single channel is constant along every axis
        order = [axis] if moved.dim() == len(shape) and moved.shape[axis] == 1 else []
    for d in order:
        rest = [other for other in range(moved.dim()) if other != d]
        most = channel.amax(rest)
        least = torch.where(channel < 0, shape[axis], channel).amin(rest)
        if bool(((most == least) | (most < 0)).all()):
            uniform = bool((channel.amin(rest) >= 0)[most >= 0].all())
            return Places(d, most, uniform, _is_plain(moved, shape, axis, d, most))
    return None


def _is_plain(moved: Tensor, shape: tuple[int, ...], axis: int, d: int, index: Tensor) -> bool:
    if d != axis or moved.dim() != len(shape):
        return False
    chosen = numbered(shape).index_select(axis, index.clamp(min=0))
    keeps = [1] * len(shape)
    keeps[axis] = -1
    return chosen.shape == moved.shape and torch.equal(chosen * (index >= 0).reshape(keeps), moved)


def tells_size(node: fx.Node, axis: int) -> bool:
    """Whether the size of the channels, on `axis` of the result, stands in the node itself, so that it would be wrong
    for fewer channels: anything but the -1 of a view."""
    if node.target not in _SIZED:
        return False
    sizes = stated_sizes(node)
    return axis >= len(sizes) or sizes[axis] != -1


def stated_sizes(node: fx.Node) -> list[Any]:
    """The sizes a view is told."""
    sizes = node.kwargs.get("shape", node.kwargs.get("size", node.args[1:]))
    if isinstance(sizes, tuple | list) and len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = sizes[0]
    return list(sizes) if isinstance(sizes, tuple | list) else []


def _names_places(node: fx.Node, axis: int, dims: int) -> bool:
    """Whether single places along an axis of the source, of so many dimensions, stand in the node itself, or in the
    split that it takes a part of. Though all are taken in order, they are others when some of the channels go."""
    if node.target in ("roll", torch.roll):
        over: Any = node.kwargs.get("dims", node.args[2] if len(node.args) > 2 else ())
        listed = over if isinstance(over, list | tuple) else [over]
        return not listed or any(not isinstance(d, int) or d % dims == axis for d in listed)
    if node.target is not operator.getitem:
        return False
    source, index = node.args
    while isinstance(source, fx.Node) and source.target is operator.getitem:
        source = source.args[0]
    if isinstance(source, fx.Node) and source.target in ("split", torch.split):
        along: Any = source.kwargs.get("dim", source.args[2] if len(source.args) > 2 else 0)
        sizes = source.kwargs.get("split_size", source.args[1] if len(source.args) > 1 else None)
        if isinstance(sizes, list | tuple) and (not isinstance(along, int) or along % dims == axis):
            return True
    taken = [each for each in (index if isinstance(index, tuple) else (index,)) if each is not None]
    place = 0
    for each in taken:
        if place == axis and isinstance(each, list | tuple):
            return True
        place += dims - len(taken) + 1 if each is Ellipsis else 1
    return False


Rewrite = Literal["", "size", "select"]


def rewriting(
    node: fx.Node,
    module: nn.Module | None,
    places: Places,
    shape: tuple[int, ...],
    axis: int,
    scattered: bool,
) -> Rewrite | None:
    """What becomes of a move when some channels go, on `axis` of its source of this shape: nothing, another size in
    the call, or a `Select` in its place. None where it would be wrong without them and cannot be put right.

    scattered: the channels were on several axes on the way.
    """
    index, channels = places.index, shape[axis]
    repeats = torch.bincount(index[index >= 0], minlength=channels)
    whole = len(index) % channels == 0 and bool((repeats == len(index) // channels).all())
    in_order = len(index) > channels or torch.equal(index, torch.arange(channels))
    counts = isinstance(module, nn.ChannelShuffle | Select) or "channel_shuffle" in str(node.target)
    counts = counts or _names_places(node, axis, len(shape))
    if not scattered and not counts and whole and in_order:
        return "size" if tells_size(node, places.axis) else ""
    return "select" if places.plain else None


def is_flatten(moved: Tensor, places: Places, channels: int) -> bool:
    """Whether every channel has become as many features as it has pixels, one after the other."""
    repeat = len(places.index) // channels
    return moved.dim() == 2 and torch.equal(places.index, torch.arange(channels).repeat_interleave(repeat))
