"""Files that carry their own schema: one schema for all files of a run, and types that a format cannot hold.

On the way out, a type that the format lacks is stored as another that holds the same values; the file then remembers the original schema
in its metadata under `tiebeam.schema`, as Arrow IPC in base64. On the way in, that is where types come from; encodings (dictionaries,
views, run ends) become plain, so that a column has one type in every batch; and files are brought together by column name: what is
missing is null, narrow types are widened, and types that cannot meet are refused before anything moves.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tiebeam.errors import BadFileError, ConfigError, Problem
from tiebeam.io._file_source import FileSource
from tiebeam.io._listing import FoundFile
from tiebeam.rows import ROW_POSITION, RowBatch

REMEMBERED = "tiebeam.schema"


class TypedFileSource(FileSource):
    """Reads files of a format that carries schemas; a format says how to find the schema of one file."""

    def __post_init__(self):
        super().__post_init__()
        self._schema: pa.Schema | None = None

    def schema_of(self, path: str) -> pa.Schema:
        """The schema of a file, plain; raises BadFileError."""
        raise NotImplementedError

    def prepared(self, found: list[FoundFile]) -> Self:
        prepared = super().prepared(found)
        prepared._schema = _unified(self._schemas([f.path for f in found]))
        return prepared

    def _schemas(self, paths: list[str]) -> list[tuple[str, pa.Schema]]:
        def attempt(path: str) -> tuple[str, pa.Schema] | None:
            try:
                return path, self.schema_of(path)
            except (BadFileError, OSError):
                return None  # reading it will say why, or keep it as a dead letter

        with ThreadPoolExecutor(8) as pool:
            return [found for found in pool.map(attempt, paths) if found]

    def columns_in(self, schema: pa.Schema) -> list[str]:
        """The columns to read of a file."""
        return [name for name in schema.names if self.wanted is None or name in self.wanted]

    def conformed(self, batch: RowBatch, own: pa.Schema, path: str) -> RowBatch:
        """Gives the wanted columns of a batch the types of the file, and then those of the run."""
        target = [field for field in self._schema or own if self.wanted is None or field.name in self.wanted]
        columns = []
        for field in target:
            try:
                known = field.name in batch.schema.names
                column = cast(batch.column(field.name), own.field(field.name).type) if known else pa.nulls(batch.num_rows, field.type)
                columns.append(cast(column, field.type))
            except (pa.ArrowException, ValueError) as e:
                raise BadFileError(f"{path}: column {field.name!r} cannot be read as {field.type}: {e}") from e
        return batch_of(columns, target, batch.num_rows)


def batch_of(columns: list[pa.Array], fields: list[pa.Field], rows: int) -> RowBatch:
    """A batch that knows its number of rows even when it has no columns."""
    if columns:
        return RowBatch.from_arrays(columns, schema=pa.schema(fields))
    return RowBatch.from_struct_array(pa.StructArray.from_buffers(pa.struct([]), rows, [None]))


def positions(path: str, first: int, rows: int) -> pa.Array:
    """Positions `path:number` of consecutive rows."""
    return joined(path + ":", pa.array(np.arange(first, first + rows)))


def joined(prefix: str, numbers: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(prefix), numbers.cast(pa.string()), "")


def with_positions(batch: RowBatch, values: pa.Array) -> RowBatch:
    index = batch.schema.get_field_index(ROW_POSITION)
    field = pa.field(ROW_POSITION, pa.string())
    return batch.append_column(field, values) if index < 0 else batch.set_column(index, field, values)


def rebuilt(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Applies a change to a type and, from the outside inwards, to the types in it."""
    kind = change(kind)
    t = pa.types

    def inner(field: pa.Field) -> pa.Field:
        return pa.field(field.name, rebuilt(field.type, change))

    if t.is_struct(kind):
        return pa.struct([inner(field) for field in kind])
    if t.is_map(kind):
        return pa.map_(rebuilt(kind.key_type, change), rebuilt(kind.item_type, change), keys_sorted=kind.keys_sorted)
    if t.is_fixed_size_list(kind):
        return pa.list_(inner(kind.value_field), kind.list_size)
    views = ((t.is_list_view, pa.list_view), (t.is_large_list_view, pa.large_list_view))
    for is_kind, make in ((t.is_list, pa.list_), (t.is_large_list, pa.large_list), *views):
        if is_kind(kind):
            return make(inner(kind.value_field))
    return kind


def plain(schema: pa.Schema) -> pa.Schema:
    """A schema without encodings, metadata and promises that nothing is null."""
    return pa.schema([pa.field(field.name, rebuilt(field.type, _decoded)) for field in schema])


def _decoded(kind: pa.DataType) -> pa.DataType:
    t = pa.types
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return _decoded(kind.value_type)
    if t.is_list_view(kind):
        return pa.list_(kind.value_field)
    if t.is_large_list_view(kind):
        return pa.large_list(kind.value_field)
    if t.is_string_view(kind):
        return pa.string()
    return pa.binary() if t.is_binary_view(kind) else kind


def cast(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Casts without loss; raises ArrowInvalid where a value does not fit."""
    if column.type == kind:
        return column
    if pa.types.is_run_end_encoded(column.type):
        column = pc.run_end_decode(column)
    if pa.types.is_list_view(column.type) or pa.types.is_large_list_view(column.type):  # Arrow 25 fails to cast one that holds nulls
        column = pa.array(column.to_pylist(), pa.large_list(column.type.value_field))
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, column.cast(kind.storage_type))
    return column.cast(kind)


def stored(batch: RowBatch, schema: pa.Schema) -> RowBatch:
    """Gives a batch the types that its file holds."""
    columns = [cast(column, field.type) for column, field in zip(batch.columns, schema, strict=True)]
    return RowBatch.from_arrays(columns, schema=schema)


def remember(schema: pa.Schema) -> str:
    """A schema as text for a file's metadata."""
    return base64.b64encode(plain(schema).serialize()).decode()


def recall(text: str | bytes | None) -> pa.Schema | None:
    """The schema in a file's metadata; None when there is none, or none that can be read."""
    try:
        return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True))) if text else None
    except (pa.ArrowException, ValueError, OSError):
        return None


def _unified(found: Iterable[tuple[str, pa.Schema]]) -> pa.Schema | None:
    merged: pa.Schema | None = None
    origin: dict[str, str] = {}
    for path, schema in found:
        if merged is None:
            merged = schema
        elif schema != merged:
            merged = _merged(merged, schema, origin, path)
        for name in schema.names:
            origin.setdefault(name, path)
    return merged


def _merged(merged: pa.Schema, schema: pa.Schema, origin: dict[str, str], path: str) -> pa.Schema:
    problems, fields = [], {field.name: field for field in merged}
    for field in schema:
        before = fields.get(field.name, field)
        try:
            fields[field.name] = pa.unify_schemas([pa.schema([before]), pa.schema([field])], promote_options="permissive").field(0)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            what = f"column {field.name!r} is {before.type} in {origin[field.name]} and {field.type} in {path}"
            problems.append(Problem(what, fix="read the files apart, or mend one"))
    if problems:
        raise ConfigError(*problems)
    return pa.schema(list(fields.values()))
