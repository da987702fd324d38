"""Holds what `live` has streamed to the batch and to the purchases themselves, day by day."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl

from tiebeam.pipelines import _retail_data
from tiebeam.pipelines._live_replay import purchases

SUMS = ["revenue", "items", "purchases"]
TYPES: dict[str, Any] = {"day": pl.Datetime("us", "UTC"), "revenue": pl.Decimal(38, 2), "items": pl.Int64, "purchases": pl.Int64}


def compared(folder: Path, rows: int) -> dict[str, int]:
    late = _files(folder / "late")
    windows = _windows(folder / "windows")
    of_late = [by_day(pl.read_parquet(late).rename({"row_time": "moment"}))] if late else []
    stream = _by_day([windows, *of_late])
    batch = _by_day([_windows(folder / "batch")])
    truth = _by_day([by_day(purchases(rows))])
    return {
        "days": stream.height,
        "in_windows": int(windows["purchases"].sum()),
        "late": pl.read_parquet(late).height if late else 0,
        "files": len(_files(folder / "windows")) + len(late),
        "unlike_batch": _differences(stream, batch),
        "unlike_purchases": _differences(stream, truth),
    }


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _windows(folder: Path) -> pl.DataFrame:
    """The windows in a folder: day, revenue, items, purchases."""
    parts = [pl.read_parquet(file) for file in _files(folder)]
    named = [part.select(pl.col("window_start").alias("day"), *SUMS) for part in parts]
    return typed(pl.concat(named) if named else pl.DataFrame(schema=TYPES))


def _by_day(parts: list[pl.DataFrame]) -> pl.DataFrame:
    return pl.concat(parts).group_by("day").agg(pl.col(SUMS).sum()).sort("day")


def _differences(one: pl.DataFrame, other: pl.DataFrame) -> int:
    return one.join(other, on=one.columns, how="anti").height + other.join(one, on=one.columns, how="anti").height


def by_day(rows: pl.DataFrame) -> pl.DataFrame:
    """Sums by day of New York; `moment` says when each purchase was."""
    day = pl.col("moment").dt.convert_time_zone(_retail_data.TIME_ZONE).dt.truncate("1d").dt.convert_time_zone("UTC").alias("day")
    money = pl.col("sales_value").cast(pl.Decimal(38, 2)).sum().alias("revenue")
    return typed(rows.group_by(day).agg(money, pl.col("quantity").sum().alias("items"), pl.len().alias("purchases")))


def typed(sums: pl.DataFrame) -> pl.DataFrame:
    """Sums in the types in which they are compared."""
    return sums.select(pl.col(name).cast(kind) for name, kind in TYPES.items())
