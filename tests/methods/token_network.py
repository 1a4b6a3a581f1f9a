"""A small vision transformer, as a user's own factory."""

from __future__ import annotations

from torch import Tensor, nn

from bench.networks import separate_attention

WIDTH, HEADS, HIDDEN = 16, 4, 24


class Transformer(nn.Module):
    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(channels, WIDTH, 2, 2)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.up, self.relu, self.down = nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH)
        self.head = nn.Linear(WIDTH, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm1(x)
        x = x + self.attention(y, y, y)[0]
        x = x + self.down(self.relu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


def transformer(input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    return separate_attention(Transformer(input_shape[0], classes))
