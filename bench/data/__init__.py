"""Data sets, whole in memory as uint8 tensors; batches are normalised and augmented on the device that
trains.

`load` gives what training may see: the train and the validation part. The test part is not in it; the
evaluation step asks for it with `load_test`, which refuses inside `test_is_sealed()`, where all training
runs.
"""

from bench.data.registry import TestSplitRefused, available, load, load_test, test_is_sealed
from bench.data.split import Dataset, Split

__all__ = ["Dataset", "Split", "TestSplitRefused", "available", "load", "load_test", "test_is_sealed"]
