"""`results/README.md` names every field of the schema and every column of the DataFrames."""

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from bench.records import schema
from bench.records.frame import MEASURE_COLUMNS, POINT_COLUMNS, TRAIN_COLUMNS

README = (Path(__file__).parents[2] / "results" / "README.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([^`\n]+)`", README))
MODELS = [
    value for value in vars(schema).values() if isinstance(value, type) and issubclass(value, BaseModel)
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_every_field_is_named(model: type[BaseModel]) -> None:
    assert set(model.model_fields) <= NAMED


def test_every_column_is_named() -> None:
    wild = [name.removesuffix("*") for name in NAMED if name.endswith("_*")]
    for column in {*POINT_COLUMNS, *TRAIN_COLUMNS, *MEASURE_COLUMNS}:
        tail = next((column.removeprefix(start) for start in wild if column.startswith(start)), column)
        plain = column if column in NAMED else tail
        assert plain in NAMED or column.removesuffix("_ms") in NAMED, column


def test_the_versions_are_those_of_the_code() -> None:
    assert re.search(r"`schema_version`: of the file format, now (\d+)", README)[1] == str(
        schema.SCHEMA_VERSION
    )  # type: ignore[index]
    assert re.search(r"`protocol_version`:.*now (\d+)", README)[1] == str(schema.PROTOCOL_VERSION)  # type: ignore[index]
