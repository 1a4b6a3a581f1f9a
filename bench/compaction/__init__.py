"""Physical removal of units, with proof. Works on any fx-traceable `torch.nn.Module`."""

from bench.compaction.architecture import Architecture, LayerChange, apply_architecture
from bench.compaction.archive import Dynamic, load_archive, load_compact, save_compact
from bench.compaction.branch_sites import find_branches
from bench.compaction.removal import Compacted, compact
from bench.compaction.sites import find_sites
from bench.compaction.verify import Certificate, masked_reference, top1_changes

__all__ = [
    "Architecture",
    "Certificate",
    "Compacted",
    "Dynamic",
    "LayerChange",
    "apply_architecture",
    "compact",
    "find_branches",
    "find_sites",
    "load_archive",
    "load_compact",
    "masked_reference",
    "save_compact",
    "top1_changes",
]
