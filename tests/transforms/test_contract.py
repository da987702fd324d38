"""Contracts: what is read from ODCS, what is refused, and how."""

import contextlib
import copy
import functools
import os
import shutil
import subprocess
from datetime import UTC, datetime
from decimal import Decimal

import pyarrow as pa
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from tiebeam.errors import ConfigError
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.transforms._rules import Bound, Length, MultipleOf, NotMissing, OneOf, Pattern
from tiebeam.transforms.conform import Contract

HEAD = "apiVersion: v3.1.0\nkind: DataContract\nid: c\nversion: 1.0.0\nstatus: active\n"
LINT = os.environ.get("DATACONTRACT_CLI") or shutil.which("datacontract")

EVERY_TYPE = {
    **{f"i{t.bit_width}": t for t in (pa.int8(), pa.int16(), pa.int32(), pa.int64())},
    **{f"u{t.bit_width}": t for t in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    **{f"f{t.bit_width}": t for t in (pa.float16(), pa.float32(), pa.float64())},
    "d128": pa.decimal128(10, 2),
    "d256": pa.decimal256(60, 3),
    "text": pa.string(),
    "bytes": pa.binary(),
    "fixed": pa.binary(16),
    "flag": pa.bool_(),
    "d32": pa.date32(),
    "d64": pa.date64(),
    **{f"time_{u}": (pa.time32 if u in "sms" and u != "us" else pa.time64)(u) for u in ("s", "ms", "us", "ns")},
    **{f"naive_{u}": pa.timestamp(u) for u in ("s", "ms", "us", "ns")},
    **{f"zoned_{u}": pa.timestamp(u, "UTC") for u in ("s", "ms", "us", "ns")},
    "berlin": pa.timestamp("us", "Europe/Berlin"),
    **{f"lasts_{u}": pa.duration(u) for u in ("s", "ms", "us", "ns")},
    "list": pa.list_(pa.decimal128(5, 1)),
    "struct": pa.struct([("a", pa.int64()), ("b", pa.list_(pa.struct([("c", pa.timestamp("ms", "UTC"))])))]),
    "map": pa.map_(pa.string(), pa.int32()),
    "vector": pa.list_(pa.float32(), 3),
}


def contract(properties: str, table: str = "", head: str = HEAD) -> Contract:
    indented = "".join(f"  - {line}\n" if line[:1] != " " else f"  {line}\n" for line in properties.strip().splitlines())
    return Contract.parse(f"{head}schema:\n- name: t\n{table}  properties:\n{indented}", "shop.yaml")


def problems(properties: str, **more: str) -> list[str]:
    with pytest.raises(ConfigError) as e:
        contract(properties, **more)
    return [str(p) for p in e.value.problems]


def test_every_arrow_type_survives_infer_dump_and_load(tmp_path):
    batch = RowBatch.from_arrays([pa.nulls(1, t) for t in EVERY_TYPE.values()], names=list(EVERY_TYPE))
    (tmp_path / "all.yaml").write_text(Contract.infer(batch, "everything").dump())
    loaded = Contract.load(str(tmp_path / "all.yaml"))
    assert loaded.schema == pa.schema(list(EVERY_TYPE.items()))


@pytest.mark.skipif(LINT is None, reason="datacontract-cli is not installed")
def test_what_we_write_is_accepted_by_datacontract_cli(tmp_path):
    path = tmp_path / "all.yaml"
    batch = RowBatch.from_arrays([pa.nulls(1, t) for t in EVERY_TYPE.values()], names=list(EVERY_TYPE))
    path.write_text(Contract.infer(batch, "all").dump())
    told = subprocess.run([LINT, "lint", str(path)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stdout


def test_infer_takes_ordinary_types_and_leaves_reserved_columns_out():
    batch = RowBatch.from_arrays(
        [pa.array(["a"]).dictionary_encode(), pa.array(["a"], pa.large_string()), pa.nulls(1), pa.array([0], pa.timestamp("us", "UTC"))],
        names=["code", "large", "unknown", ROW_TIME],
    )
    assert Contract.infer(batch, "t").schema == pa.schema([("code", pa.string()), ("large", pa.string()), ("unknown", pa.string())])


def test_types_follow_logical_types_and_their_options():
    read = contract("""
{name: i, logicalType: integer, physicalType: INT}
{name: i8, logicalType: integer, logicalTypeOptions: {format: i8}}
{name: n, logicalType: number, physicalType: varchar(20)}
{name: money, logicalType: number, physicalType: "NUMERIC(12, 3)"}
name: tools
  logicalType: number
  physicalType: DECIMAL
  customProperties: [{property: precision, value: 9}, {property: scale, value: 2}]
{name: t, logicalType: timestamp}
{name: tz, logicalType: timestamp, logicalTypeOptions: {timezone: true}}
{name: there, logicalType: timestamp, physicalType: "timestamp[ms]", logicalTypeOptions: {defaultTimezone: America/New_York}}
{name: raw, logicalType: string, logicalTypeOptions: {format: binary}}
{name: label, physicalName: LABEL_1, logicalType: string}
""")
    assert read.schema == pa.schema(
        [
            ("i", pa.int64()),
            ("i8", pa.int8()),
            ("n", pa.float64()),
            ("money", pa.decimal128(12, 3)),
            ("tools", pa.decimal128(9, 2)),
            ("t", pa.timestamp("us")),
            ("tz", pa.timestamp("us", "UTC")),
            ("there", pa.timestamp("ms", "America/New_York")),
            ("raw", pa.binary()),
            ("LABEL_1", pa.string()),
        ]
    )


def test_rules_are_read_from_options_enum_and_quality():
    read = contract("""
name: kind
  logicalType: string
  enum: [{value: sale}, {value: refund}]
  logicalTypeOptions: {minLength: 2, maxLength: 6, pattern: "^[a-z]+$"}
{name: n, logicalType: integer, logicalTypeOptions: {exclusiveMinimum: 0.5, maximum: 9, multipleOf: 3}}
{name: price, logicalType: number, physicalType: "decimal(9,2)", logicalTypeOptions: {minimum: 0.005}}
{name: at, logicalType: timestamp, logicalTypeOptions: {timezone: true, minimum: "2020-01-01T00:00:00Z"}}
name: grade
  logicalType: string
  quality:
  - {metric: invalidValues, mustBe: 0, arguments: {validValues: [a, b], pattern: "^.$"}}
  - {metric: missingValues, mustBe: 0, arguments: {missingValues: ["", "n/a", null]}}
  - {type: text, description: graded by the teacher}
  - {type: sql, query: SELECT 1, mustBe: 1, customProperties: [{property: judged_elsewhere, value: true}]}
""")
    kind, n, price, at, grade = read.columns
    assert kind.rules == (Pattern("^[a-z]+$"), Length(2, 6), OneOf(pa.array(["sale", "refund"])))
    assert n.rules == (Bound(">", pa.scalar(0)), Bound("<=", pa.scalar(9)), MultipleOf(3))
    assert price.rules == (Bound(">=", pa.scalar(Decimal("0.01"), pa.decimal128(9, 2))),)
    assert at.rules == (Bound(">=", pa.scalar(datetime(2020, 1, 1, tzinfo=UTC), pa.timestamp("us", "UTC"))),)
    assert grade.rules == (OneOf(pa.array(["a", "b"])), Pattern("^.$"), NotMissing(pa.array(["", "n/a"])))
    assert grade.required
    assert read.summary()[0] == ("kind", "string", "matches ^[a-z]+$; 2 to 6 long; one of sale, refund")


def test_keys_are_read_in_their_order_and_each_once():
    read = contract(
        """
{name: b, logicalType: string, primaryKey: true, primaryKeyPosition: 2}
{name: a, logicalType: integer, primaryKey: true, primaryKeyPosition: 1}
{name: c, logicalType: string, unique: true, quality: [{metric: duplicateValues, mustBe: 0}]}
""",
        table="  quality: [{metric: duplicateValues, mustBe: 0, arguments: {properties: [b, c]}}]\n",
    )
    assert read.primary_key == ("a", "b")
    assert read.keys == (("a", "b"), ("c",), ("b", "c"))
    assert [c.required for c in read.columns] == [True, True, False]


def test_policies_of_the_table_win_over_those_of_the_contract():
    said = "{property: new_columns, value: evolve}, {property: changed_types, value: freeze}, {property: owner, value: me}"
    head = f"{HEAD}customProperties: [{said}]\n"
    read = contract("{name: a, logicalType: string}", table="  customProperties: [{property: new_columns, value: variant}]\n", head=head)
    assert (read.new_columns, read.changed_types) == ("variant", "freeze")
    plain = contract("{name: a, logicalType: string}")
    assert (plain.new_columns, plain.changed_types) == ("drop_row", "drop_row")


WRONG = {
    "{name: a, logicalType: strin}": ("schema[0].properties[0] (a).logicalType", "did you mean string?"),
    "{name: a, logicaltype: string}": ("(a).logicaltype", "did you mean logicalType?"),
    "{name: a}": ("says no logicalType", "one of: string"),
    "{logicalType: string}": ("has no name", "write `name: …`"),
    "{name: a, logicalType: array}": ("(a).items", "describe what is inside"),
    "{name: a, logicalType: object}": ("(a).properties", "describe what is inside"),
    "{name: a, logicalType: number, physicalType: 'decimal(80,2)'}": ("there is no decimal(80,2)", "1 to 76"),
    "{name: a, logicalType: integer, logicalTypeOptions: {format: i128}}": ("'i128' is not supported", "i64"),
    "{name: a, logicalType: integer, logicalTypeOptions: {minimum: x}}": ("'x' is no value of int64", "within the type"),
    "{name: a, logicalType: integer, logicalTypeOptions: {format: i8, maximum: 300}}": ("300 is no value of int8", "within the type"),
    "{name: a, logicalType: integer, logicalTypeOptions: {minLength: 1}}": ("minLength", "known: "),
    "{name: a, logicalType: integer, logicalTypeOptions: {multipleOf: 0.5}}": ("0.5 is no whole number", "whole number"),
    "{name: a, logicalType: string, logicalTypeOptions: {pattern: '(?=x)'}}": ("no regular expression of RE2", "look-around"),
    "{name: a, logicalType: string, logicalTypeOptions: {format: ipv6}}": ("'ipv6' is not supported", "use `pattern`"),
    "{name: a, logicalType: string, logicalTypeOptions: {minLength: 5, maxLength: 2}}": ("5 to 2 is no range", "smaller first"),
    "{name: a, logicalType: date, logicalTypeOptions: {format: yy.MM.dd}}": ("'yy' in the format", "yyyy"),
    '{name: a, logicalType: date, logicalTypeOptions: {format: "yyyy \'at"}}': ("has an open quote", "quoted text"),
    "{name: a, logicalType: timestamp, logicalTypeOptions: {format: yyyyMMdd ss}}": ("no hours", "yyyy"),
    "{name: a, logicalType: object, logicalTypeOptions: {maxProperties: 1}}": ("cannot be judged here", "remove it"),
    "{name: a, logicalType: string, enum: [{value: NO}]}": ("False is no value of string", "quote it"),
    "{name: a, logicalType: integer, enum: [{value: 1}, {value: x}]}": ("enum[1]", "of that type"),
    "{name: a, logicalType: string, quality: [{metric: rowCount, mustBe: 0}]}": ("rowCount cannot be judged", "judged_elsewhere"),
    "{name: a, logicalType: string, quality: [{metric: nullValues, mustBeLessThan: 5}]}": ("only `mustBe: 0`", "judged_elsewhere"),
    "{name: a, logicalType: integer, quality: [{type: sql, query: SELECT 1, mustBe: 0}]}": ("a sql rule", "judged_elsewhere"),
    "{name: a, logicalType: array, items: {logicalType: string}, unique: true}": ("nested column cannot be a key", "plain columns"),
    "{name: row_time, logicalType: string}": ("reserved column", "leave it out"),
    "{name: a, logicalType: string}\n{name: a, logicalType: string}": ("described twice", "keep one"),
}


@pytest.mark.parametrize("properties", WRONG)
def test_what_is_wrong_is_told_with_place_and_fix(properties):
    (problem, *_) = problems(properties)
    what, fix = WRONG[properties]
    assert problem.startswith("shop.yaml: ")
    assert what in problem
    assert fix in problem


def test_everything_wrong_is_told_at_once():
    head = "apiVersion: v2\nkind: Contract\n"
    told = problems(
        "{name: a, logicalType: strin}\n{name: b, logicalType: integer, logicalTypeOptions: {minimum: x, multipleOf: x}}",
        head=head,
        table="  customProperties: [{property: newColumns, value: evolve}, {property: changed_types, value: evolv}]\n",
    )
    places = [t.split(": ")[1] for t in told]
    at = "schema[0]"
    assert places == [
        "kind",
        "apiVersion",
        "id",
        "version",
        f"{at}.properties[0] (a).logicalType",
        f"{at}.properties[1] (b).logicalTypeOptions.minimum",
        f"{at}.properties[1] (b).logicalTypeOptions.multipleOf",
        f"{at}.customProperties[0]",
        f"{at}.customProperties[1]",
    ]
    assert "did you mean new_columns?" in told[-2]
    assert "did you mean evolve?" in told[-1]


JUNK = [None, 0, -1, 1.5, True, "x", "", [], {}, [1], [None], [[1]], {"a": 1}, 10**30]
WHOLE = contract("""
{name: k, logicalType: integer, primaryKey: true, logicalTypeOptions: {format: i32, minimum: 1, multipleOf: 2}}
name: s
  logicalType: string
  enum: [{value: a}]
  logicalTypeOptions: {pattern: a, minLength: 1, maxLength: 3, format: uuid}
  quality: [{metric: invalidValues, mustBe: 0, arguments: {validValues: [a], pattern: a}}]
{name: d, logicalType: number, physicalType: DECIMAL, customProperties: [{property: precision, value: 4}, {property: scale, value: 1}]}
{name: t, logicalType: timestamp, logicalTypeOptions: {timezone: true, defaultTimezone: UTC, format: yyyy, minimum: "2020-01-01"}}
{name: o, logicalType: object, logicalTypeOptions: {required: [a]}, properties: [{name: a, logicalType: date}]}
{name: l, logicalType: array, items: {logicalType: time}, logicalTypeOptions: {minItems: 1}}
{name: m, logicalType: map, map: {key: {logicalType: string}, value: {logicalType: boolean}}}
{name: v, logicalType: vector, logicalTypeOptions: {dimensions: 2, elementType: float32}}
""").document


def places(value, path=()):
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [deeper for key, part in inside for deeper in places(part, (*path, key))]


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.sampled_from(places(WHOLE)), st.sampled_from(JUNK))
def test_whatever_stands_in_a_contract_is_read_or_told(place, junk):
    document = copy.deepcopy(WHOLE)
    holder = functools.reduce(lambda inside, key: inside[key], place[:-1], document)
    holder[place[-1]] = copy.deepcopy(junk)
    with contextlib.suppress(ConfigError):
        Contract.parse(yaml.safe_dump(document))


def test_one_table_of_several_is_picked_by_name(tmp_path):
    path = tmp_path / "shop.yaml"
    path.write_text(HEAD + "schema:\n" + "".join(f"- name: {n}\n  properties: [{{name: {n}_id, logicalType: integer}}]\n" for n in "ab"))
    with pytest.raises(ConfigError, match=r"holds 2 tables\n.*pick one: shop.yaml#a \(or b\)"):
        Contract.load(str(path))
    with pytest.raises(ConfigError, match=r"no table 'c'\n.*there are: a, b"):
        Contract.load(f"{path}#c")
    assert Contract.load(f"{path}#b").schema.names == ["b_id"]


@pytest.mark.parametrize(
    "text, told",
    [("a: [", "not YAML"), ("just text", "a mapping is expected"), (HEAD + "id: d\n", "'id' is given twice"), (HEAD, "lists no table")],
)
def test_files_that_are_no_contract(tmp_path, text, told):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=told):
        Contract.load(str(tmp_path / "x.yaml"))


def test_a_missing_file_is_a_configuration_error(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        Contract.load(str(tmp_path / "none.yaml"))
