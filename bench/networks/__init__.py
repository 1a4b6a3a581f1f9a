"""The networks: one file a family, sized by the data set.

Each file has `NETWORKS`, name → factory, a function from (input_shape, classes) to a module whose forward
torch.fx can trace. A file dropped here is found.
"""

from bench.networks._attention import HeadProducts, separate_attention
from bench.networks._build import available, build, check_unchanged, outline, own_digest
from bench.networks._start import checkpoint_digest, load_start

__all__ = [
    "HeadProducts",
    "available",
    "build",
    "check_unchanged",
    "checkpoint_digest",
    "load_start",
    "outline",
    "own_digest",
    "separate_attention",
]
