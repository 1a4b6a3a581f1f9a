"""Records of every schema version there was stay loadable: a sample, once here, is never changed or
removed."""

from pathlib import Path

import pytest

from bench.records.files import load
from bench.records.schema import RECORD_TYPES, SCHEMA_VERSION

SAMPLES = sorted((Path(__file__).parent / "samples").glob("v*/*.json"))


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_sample_is_loadable(path: Path) -> None:
    record = load(path)
    assert path.parent.name == f"v{record.schema_version}"


def test_there_are_samples_of_every_version_and_kind() -> None:
    have = {(path.parent.name, load(path).kind) for path in SAMPLES}
    assert have == {
        (f"v{version}", kind) for version in range(1, SCHEMA_VERSION + 1) for kind in RECORD_TYPES
    }
