"""Hive partitions: rows whose partition columns are told by the folders they lie in, `day=2026-11-24/shop=7/`.

Names and values are percent-encoded, as Arrow and Hive read them; null is `__HIVE_DEFAULT_PARTITION__`, and a text of just that
name is encoded, so that it stays a text.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa

from tiebeam.dead_letters import Letters, letters_of_rows
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import RowBatch

NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
MAX_NAME_BYTES = 255


def is_hive(part: str) -> bool:
    """Whether a folder's name is that of a Hive partition, `key=value`."""
    return "=" in part and not part.startswith((".", "="))


def partition_of(name: str) -> dict[str, str | None]:
    """The partition values that the folders of a file's path give, as text."""
    pairs = (part.partition("=") for part in name.split("/")[:-1] if "=" in part)
    return {unquote(key): None if value == NULL_PARTITION else unquote(value) for key, _, value in pairs if key}


@dataclass(frozen=True)
class Partition:
    """A combination of partition values: its folder, `k=v/`, empty for an unpartitioned table, and the values as text."""

    folder: str
    values: dict[str, str | None]


def by_partition(batch: RowBatch, keys: tuple[str, ...], step: str) -> tuple[list[tuple[Partition, RowBatch]], list[Letters]]:
    """Cuts a batch by partition: one sort of the whole, then one gather per partition, so that no piece keeps the batch alive."""
    if missing := [key for key in keys if key not in batch.schema.names]:
        there = ", ".join(batch.schema.names)
        raise ConfigError(Problem(f"there is no column {missing[0]!r}", "partition_by", f"the columns are: {there}"))
    if len(batch.schema) == len(keys):
        raise ConfigError(Problem("no column is left for the files", "partition_by", "name fewer columns"))
    texts = [_texts(batch.column(key), key) for key in keys]
    codes = np.zeros(batch.num_rows, np.int64)
    for text in texts:
        codes = np.unique(codes * (len(text.dictionary) + 1) + text.indices.to_numpy(zero_copy_only=False), return_inverse=True)[1]
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    rest = _takeable(batch.drop_columns(list(keys)))
    good: list[tuple[Partition, RowBatch]] = []
    refused: list[Letters] = []
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        rows = order[start:end]
        values = {key: text[int(rows[0])].as_py() for key, text in zip(keys, texts, strict=True)}
        parts = [f"{_quoted(key)}={_folder_name(value)}" for key, value in values.items()]
        if any(len(part) > MAX_NAME_BYTES for part in parts):
            detail = f"the partition {keys} has a value longer than the {MAX_NAME_BYTES} bytes that a folder's name may have"
            refused.append(letters_of_rows(step, _takeable(batch).take(pa.array(rows)), "partition_too_long", [detail] * len(rows)))
        else:
            good.append((Partition("".join(f"{part}/" for part in parts), values), rest.take(pa.array(rows))))
    return good, refused


def _texts(column: pa.Array, key: str) -> pa.DictionaryArray:
    """The values of a partition column as text, null included, as a dictionary."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    if not (pa.types.is_primitive(kind) or pa.types.is_decimal(kind) or _is_text(kind)):
        raise ConfigError(Problem(f"a column of type {kind} cannot be a partition", f"partition_by: {key}", "derive a text from it"))
    return column.cast(pa.string()).dictionary_encode(null_encoding="encode")


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind) or pa.types.is_null(kind)


def _takeable(batch: RowBatch) -> RowBatch:
    """Makes views plain: Arrow cannot gather them."""
    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    if not any(field.type in plain for field in batch.schema):
        return batch
    return batch.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in batch.schema]))


def _folder_name(value: str | None) -> str:
    if value is None:
        return NULL_PARTITION
    return f"%5F{value[1:]}" if value == NULL_PARTITION else _quoted(value)


def _quoted(text: str) -> str:
    return quote(text, safe="")
