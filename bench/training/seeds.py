"""Named random streams, hashed from the base seed.

A stream's seed depends on its name and on nothing else, so the initial weights and the order of the data are the same
for every method of a seed.
"""

from __future__ import annotations

import hashlib


def stream(base: int, name: str, *index: int | str) -> int:
    """A seed of 63 bits for the stream `name` (and an index within it, such as the epoch)."""
    text = "/".join([str(base), name, *map(str, index)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
