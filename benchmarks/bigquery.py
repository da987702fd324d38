"""Rows of ten columns to BigQuery and back: tiebeam, the bare client in a loop, and Beam's own reader.

All against one emulator, whose processor seconds are not counted: the seconds show the emulator too, the processor seconds only the client.
Beam's own writers are left out: FILE_LOADS needs Cloud Storage, and STREAMING_INSERTS did not come to its end on the emulator.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.measuring import WORK, Cost, measure, python, say, show, warm

ROWS_A_FILE = 65_536


def write_streams(source: str, table: str) -> None:
    """Into PENDING streams, committed together."""
    _tiebeam(source, table, "storage_write")


def write_loads(source: str, table: str) -> None:
    """Parquet into staging tables, moved by one transaction."""
    _tiebeam(source, table, "load_job")


def _tiebeam(source: str, table: str, method: str) -> None:
    import apache_beam as beam

    from tiebeam.io.bigquery import WriteToBigQuery
    from tiebeam.io.parquet import ReadFromParquet

    with beam.Pipeline(runner="FnApiRunner") as p:
        p | ReadFromParquet(source) | WriteToBigQuery(table, method=method)


def write_bare(source: str, table: str) -> None:
    """What the client can do: the same requests to one PENDING stream. No retries, no dead letters, no check of a value."""
    import pyarrow.parquet as pq
    from google.cloud.bigquery_storage_v1 import types

    client, path, stream = _created(table, pq.read_schema(source))

    def requests():  # type: ignore[no-untyped-def]
        offset = 0
        for batch in pq.ParquetFile(source).iter_batches(ROWS_A_FILE):
            schema, rows = batch.schema.serialize().to_pybytes(), batch.serialize().to_pybytes()
            told = {"writer_schema": {"serialized_schema": schema}, "rows": {"serialized_record_batch": rows}}
            yield types.AppendRowsRequest(write_stream=stream, offset=offset, arrow_rows=told)
            offset += batch.num_rows

    for answer in client.append_rows(requests()):
        if answer.error.code:
            raise SystemExit(answer.error.message)
    client.finalize_write_stream(name=stream)
    client.batch_commit_write_streams(request={"parent": path, "write_streams": [stream]})


def read(_: str, table: str) -> None:
    import apache_beam as beam

    from tiebeam.io.bigquery import ReadFromBigQuery

    with beam.Pipeline(runner="FnApiRunner") as p:
        p | ReadFromBigQuery(table) | beam.Map(lambda batch: batch.num_rows) | beam.CombineGlobally(sum)


def beam_direct_read(_: str, table: str) -> None:
    import apache_beam as beam
    from apache_beam.io.gcp.bigquery import ReadFromBigQuery

    _beam_finds_the_emulator()
    with beam.Pipeline(runner="FnApiRunner") as p:
        rows = p | ReadFromBigQuery(method="DIRECT_READ", table=f"lab:{table}", project="lab")
        rows | beam.combiners.Count.Globally()


CONTENDERS: dict[str, Callable[[str, str], None]] = {
    f.__name__: f for f in (write_streams, write_loads, write_bare, read, beam_direct_read)
}


def bench(sizes: list[int], times: int, save: bool) -> None:
    """Prints one table per size."""
    from tiebeam.lab import bigquery

    for size in sizes:
        source = _rows_file(size)
        with tempfile.TemporaryDirectory(dir=WORK) as folder, bigquery.obtain().cluster(Path(folder)) as emulator:
            os.environ.update(emulator.environment)
            _client().create_dataset("bench", exists_ok=True)
            costs = {name: _cost(name, source, times) for name in CONTENDERS}
        _table(size, costs, f"bigquery_{size}" if save else None)


def _cost(name: str, source: Path, times: int) -> tuple[int, Cost]:
    import pyarrow.parquet as pq

    rows = pq.read_metadata(source).num_rows
    table = f"bench.{'write_streams' if 'read' in name else name}"
    say(f"bigquery, {rows:,} rows: {name}")
    warm(source)

    def before() -> None:
        if "read" not in name:
            _client().delete_table(f"lab.{table}", not_found_ok=True)

    cost = measure(python("benchmarks.bigquery", name, source, table), times, before=before)
    found = next(iter(_client().query_and_wait(f"SELECT count(*) AS n, sum(id) AS ids FROM `lab.{table}`")))
    if (found["n"], found["ids"]) != (rows, rows * (rows - 1) // 2):
        raise SystemExit(f"{name} left {found['n']:,} of {rows:,} rows")
    return rows, cost


def _table(size: int, costs: dict[str, tuple[int, Cost]], save_as: str | None) -> None:
    rows = []
    for name, (count, cost) in costs.items():
        figures = [
            f"{count:,}",
            f"{cost.secs:.2f}",
            f"{count / cost.secs:,.0f}",
            f"{cost.cpu_secs * 1e6 / count:.1f}",
            f"{cost.peak_mb:.0f}",
        ]
        rows.append([name.replace("_", " "), *figures])
    show(
        f"BigQuery's emulator, {size:,} rows of 10 columns", ["", "rows", "seconds", "rows/s", "CPU s per M rows", "peak MB"], rows, save_as
    )


def _rows_file(size: int) -> Path:
    """Rows of ten columns, as Parquet."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = WORK / f"bigquery_{size}.parquet"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    random, number = np.random.default_rng(7), np.arange(size)
    columns = {
        "id": pa.array(number),
        "ts": pa.array(1_767_225_600_000_000 + number * 1000, pa.timestamp("us", tz="UTC")),
        "day": pa.array(20_454 + number // 100_000, pa.int32()).cast(pa.date32()),
        "user": pa.array([f"u{n:06}" for n in random.integers(0, 1_000_000, size)]),
        "category": pa.array(np.array(["books", "coffee", "games", "garden"])[random.integers(0, 4, size)]),
        "amount": pa.array(random.random(size) * 1000),
        "count": pa.array(random.integers(0, 100, size)),
        "paid": pa.array(random.random(size) > 0.5),
        "note": pa.array([f"row {n} of the benchmark, some words long" for n in number]),
        "score": pa.array(random.integers(0, 2**40, size)),
    }
    draft = path.with_suffix(".draft")
    pq.write_table(pa.table(columns), draft, row_group_size=ROWS_A_FILE)
    draft.replace(path)
    return path


def _client():  # type: ignore[no-untyped-def]
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery

    return bigquery.Client("lab", AnonymousCredentials(), client_options={"api_endpoint": os.environ["BIGQUERY_EMULATOR_HOST"]})


def _columns(schema):  # type: ignore[no-untyped-def]
    from tiebeam.io._bigquery_types import columns_of

    return columns_of(schema)


def _created(table: str, schema):  # type: ignore[no-untyped-def]
    """A client, the table and a PENDING stream of it."""
    import grpc
    from google.cloud import bigquery
    from google.cloud.bigquery_storage_v1 import types
    from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteClient, transports

    fields = [bigquery.SchemaField.from_api_repr(c) for c in _columns(schema)]
    _client().create_table(bigquery.Table(f"lab.{table}", schema=fields))
    channel = grpc.insecure_channel(os.environ["BIGQUERY_STORAGE_EMULATOR_HOST"], options=[("grpc.max_send_message_length", -1)])
    client = BigQueryWriteClient(transport=transports.BigQueryWriteGrpcTransport(channel=channel))
    dataset, name = table.split(".")
    path = f"projects/lab/datasets/{dataset}/tables/{name}"
    stream = client.create_write_stream(parent=path, write_stream=types.WriteStream(type_=types.WriteStream.Type.PENDING)).name
    return client, path, stream


def _beam_finds_the_emulator() -> None:
    """Beam has no option for another address: its clients are pointed there one by one."""
    import google.auth
    import grpc
    from apache_beam.io.gcp.internal.clients.bigquery import bigquery_v2_client
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import bigquery_storage_v1
    from google.cloud.bigquery_storage_v1.services.big_query_read.transports import BigQueryReadGrpcTransport

    google.auth.default = lambda *_, **__: (AnonymousCredentials(), "lab")
    bigquery_v2_client.BigqueryV2.BASE_URL = os.environ["BIGQUERY_EMULATOR_HOST"] + "/bigquery/v2/"
    make = bigquery_storage_v1.BigQueryReadClient.__init__

    def made(self, *given, **named):  # type: ignore[no-untyped-def]
        channel = grpc.insecure_channel(os.environ["BIGQUERY_STORAGE_EMULATOR_HOST"], options=[("grpc.max_receive_message_length", -1)])
        make(self, transport=BigQueryReadGrpcTransport(channel=channel))

    bigquery_storage_v1.BigQueryReadClient.__init__ = made


if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](sys.argv[2], sys.argv[3])
