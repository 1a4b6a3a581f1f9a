"""Self-attention in parts that the analysis can follow: linear layers, and their products head by head.

`nn.MultiheadAttention` keeps queries, keys and values in one matrix and is one call for torch.fx, so that nothing in
it can be removed. What stands here computes the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = ("query", "key", "value")


class HeadProducts(nn.Module):
    """softmax(scale · q kᵀ) v, head by head (Vaswani et al., arXiv 1706.03762, eq. 1); no parameters.

    scale: stays what it was for the full width when channels of queries and keys go. dropout: of the softmax, in
    training.
    """

    def __init__(self, heads: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.scale, self.dropout = heads, scale, dropout

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, T, heads · d), (N, S, heads · d), (N, S, heads · e) → (N, T, heads · e)"""
        query, key, value = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query, key, value))
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=self.scale)
        return mixed.transpose(1, 2).flatten(2)


class SeparateAttention(nn.Module):
    """Computes what an `nn.MultiheadAttention` does, whose weights it takes over."""

    def __init__(self, joint: nn.MultiheadAttention) -> None:
        """Raises ValueError where `joint` has what is not known here."""
        super().__init__()
        width = joint.embed_dim
        weight, bias = joint.in_proj_weight, joint.in_proj_bias
        if weight is None or not joint.batch_first or joint.bias_k is not None or joint.add_zero_attn:
            raise ValueError("attention is separated for one width, batches first, without extra keys")
        for number, part in enumerate(PARTS):
            linear = nn.Linear(width, width, bias=bias is not None).to(weight)
            with torch.no_grad():
                linear.weight.copy_(weight.chunk(3)[number])
                if bias is not None:
                    linear.bias.copy_(bias.chunk(3)[number])
            self.add_module(part, linear)
        self.products = HeadProducts(joint.num_heads, joint.head_dim**-0.5, joint.dropout)
        self.out = nn.Linear(width, width, bias=joint.out_proj.bias is not None).to(weight)
        self.out.load_state_dict(joint.out_proj.state_dict())
        self.train(joint.training)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, need_weights: bool = False
    ) -> tuple[Tensor, None]:
        """Each (N, T, width) → (N, T, width), and None in the place of the softmax."""
        if need_weights:
            raise ValueError("separated attention does not give the weights of its softmax")
        parts = [self.get_submodule(part)(x) for part, x in zip(PARTS, (query, key, value), strict=True)]
        return self.out(self.products(*parts)), None


def separate_attention(network: nn.Module) -> nn.Module:
    """Puts a `SeparateAttention` in the place of every `nn.MultiheadAttention` of `network`, which is changed and
    returned. Not inside torch's own transformer layers, whose code looks into it.

    Raises ValueError where one has extra keys, several widths, or batches not first.
    """
    for home in list(network.modules()):
        if isinstance(home, nn.TransformerEncoderLayer | nn.TransformerDecoderLayer):
            continue
        for name, module in list(home.named_children()):
            if type(module) is nn.MultiheadAttention:
                setattr(home, name, SeparateAttention(module))
    return network


def separated(network: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the network as it was before `separate_attention`, under the names of now. What is under them
    already stays."""
    result = dict(state)
    for path, module in network.named_modules():
        if not isinstance(module, SeparateAttention):
            continue
        for kind in ("weight", "bias"):
            if (joint := result.pop(f"{path}.in_proj_{kind}", None)) is not None:
                for part, own in zip(PARTS, joint.chunk(3), strict=True):
                    result[f"{path}.{part}.{kind}"] = own
            if (out := result.pop(f"{path}.out_proj.{kind}", None)) is not None:
                result[f"{path}.out.{kind}"] = out
    return result
