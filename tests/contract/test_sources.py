"""What holds for every source: what a sink wrote is read back as it was, row by row, whole, and before the run as in it."""

from __future__ import annotations

import pyarrow as pa
import pytest

from contract import targets
from contract.cases import CASES, SOME
from contract.reading import read
from contract.test_sinks import READABLE, stage
from tiebeam.dead_letters import letters_of_rows
from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_POSITION, RowBatch


def put(name, folder, batch):
    sink = targets.sink(name, folder)
    sink.publish("r1", stage(sink, "r1", batch))


def source_for(name, folder, schema):
    """The source of a place, told the types it shall deliver where its format does not hold them."""
    source = targets.source(name, folder)
    return source.with_types(schema) if hasattr(source, "with_types") else source


ROUND_TRIPS = [
    pytest.param(
        name,
        case,
        id=f"{name}-{case}",
        marks=[pytest.mark.xfail(strict=True, reason=targets.GAPS[name, case])] if (name, case) in targets.GAPS else [],
    )
    for name in READABLE
    for case in CASES
]


@pytest.mark.parametrize(("name", "case"), ROUND_TRIPS)
def test_rows_come_back_as_they_went(name, case, tmp_path):
    batch = CASES[case]
    put(name, tmp_path, batch)
    table = read(source_for(name, tmp_path, batch.schema)).select(batch.schema.names).sort_by("n")
    wanted = pa.Table.from_batches([batch])
    assert table.cast(wanted.schema).equals(wanted), f"{table.to_pylist()[:5]} is not {wanted.to_pylist()[:5]}"


@pytest.fixture(params=targets.with_gaps(READABLE, "reading"))
def name(request):
    return request.param


def test_every_row_has_a_position_of_its_own(name, tmp_path):
    put(name, tmp_path, CASES["many"])
    positions = read(targets.source(name, tmp_path)).column(ROW_POSITION)
    assert positions.null_count == 0
    assert len(positions.unique()) == CASES["many"].num_rows


def test_a_sample_shows_the_first_rows_as_they_will_be_read(name, tmp_path):
    put(name, tmp_path, SOME)
    source = targets.source(name, tmp_path)
    sample = source.sample(2)
    assert isinstance(sample, RowBatch)
    assert sample.num_rows == 2
    assert sample.schema.equals(read(targets.source(name, tmp_path)).schema)
    assert source.sample(1000).num_rows == SOME.num_rows


def test_the_fingerprint_names_the_content(name, tmp_path):
    put(name, tmp_path, SOME)
    first = targets.source(name, tmp_path).fingerprint()
    assert first is not None
    assert targets.source(name, tmp_path).fingerprint() == first
    sink = targets.sink(name, tmp_path)
    sink.publish("r2", stage(sink, "r2", SOME))
    assert targets.source(name, tmp_path).fingerprint() != first


def test_a_place_that_is_not_there_is_told_before_the_run(name, tmp_path):
    with pytest.raises(ConfigError):
        targets.source(name, tmp_path).ping()


def test_rows_refused_after_they_were_read_can_be_decoded(name, tmp_path):
    put(name, tmp_path, SOME)
    source = targets.source(name, tmp_path)
    if "arrow" not in source.formats:
        pytest.skip("a replay reads typed rows by itself")
    rows = source.sample(10)
    letters = letters_of_rows("Check", rows, "odd", ["odd"] * rows.num_rows).batch
    originals, positions = letters.column("original").to_pylist(), letters.column(ROW_POSITION).to_pylist()
    decoded = [b for b in source.decode(originals, positions, "Decode") if isinstance(b, RowBatch)]
    assert pa.Table.from_batches(decoded).equals(pa.Table.from_batches([rows]))
