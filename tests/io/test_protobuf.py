"""Protobuf: what the real library wrote is read back as it was, whatever the values; and what is broken is refused alone."""

from __future__ import annotations

import io
from typing import Any

import pyarrow as pa
import pytest
from google.protobuf import json_format, message_factory
from hypothesis import given, settings
from hypothesis import strategies as st

from support import registry
from tiebeam.errors import ConfigError
from tiebeam.io import _protobuf, _schema_registry
from tiebeam.io._lines import Parsed, Refused
from tiebeam.io._payloads import ProtobufPayloads

SHOP = """
syntax = "proto3";
package shop.v1;
import "google/protobuf/timestamp.proto";
import "google/protobuf/duration.proto";
import "google/protobuf/wrappers.proto";
import "google/protobuf/struct.proto";
import "google/protobuf/empty.proto";
import "parts/money.proto";

message First { string only = 1; }

message Purchase {
  enum State { UNKNOWN = 0; PAID = 1; GONE = 5; }
  message Line { string sku = 1; optional uint32 count = 2; repeated parts.Money prices = 3; }
  message Tree { string name = 1; repeated Tree below = 2; }
  int64 id = 1; uint64 large = 2; sint32 small = 3; fixed32 fixed = 4; sfixed64 signed = 5;
  double amount = 6; float rate = 7; bool paid = 8; string note = 9; bytes raw = 10;
  optional int64 maybe = 11; optional string text = 12;
  State state = 13; repeated State states = 14;
  Line first = 15; repeated Line lines = 16; repeated int64 numbers = 17; repeated string words = 18;
  map<string, int64> counts = 19; map<int32, Line> by_number = 20;
  oneof how { string card = 21; int32 cash = 22; parts.Money money = 23; }
  google.protobuf.Timestamp at = 24; google.protobuf.Duration took = 25;
  google.protobuf.Int64Value wrapped = 26; google.protobuf.StringValue named = 27; google.protobuf.Struct any = 28;
  google.protobuf.Empty nothing = 29; Tree tree = 30;
}
"""
MONEY = 'syntax = "proto3"; package parts; message Money { string currency = 1; int64 cents = 2; }'
IMPORTS = {"parts/money.proto": MONEY}

FILES = _protobuf.DescriptorSet(_protobuf.compiled(SHOP, IMPORTS))
DECODER = _protobuf.MessageDecoder(FILES.named("shop.v1.Purchase"))
Purchase: Any = message_factory.GetMessageClass(FILES.named("shop.v1.Purchase"))


def whole(bits: int, signed: bool) -> st.SearchStrategy[int]:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    return st.integers(low, high) | st.sampled_from([low, high, 0])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
floats = st.floats(width=32, allow_nan=False)
money = st.fixed_dictionaries({}, optional={"currency": texts, "cents": whole(64, True)})
lines = st.fixed_dictionaries({}, optional={"sku": texts, "count": whole(32, False), "prices": st.lists(money, max_size=2)})
MOMENTS = st.integers(-(2**62), 2**62)
purchases = st.fixed_dictionaries(
    {},
    optional={
        "id": whole(64, True), "large": whole(64, False), "small": whole(32, True), "fixed": whole(32, False), "signed": whole(64, True),
        "amount": st.floats(allow_nan=False), "rate": floats, "paid": st.booleans(), "note": texts, "raw": st.binary(max_size=8),
        "maybe": whole(64, True), "text": texts, "state": st.sampled_from([0, 1, 5, 77]), "states": st.lists(st.sampled_from([0, 5, -3])),
        "first": lines, "lines": st.lists(lines, max_size=3), "numbers": st.lists(whole(64, True)), "words": st.lists(texts, max_size=3),
        "counts": st.dictionaries(texts, whole(64, True), max_size=3), "by_number": st.dictionaries(whole(32, True), lines, max_size=2),
        "card": texts, "wrapped": whole(64, True).map(lambda n: {"value": n}), "named": texts.map(lambda t: {"value": t}),
        "nothing": st.just({}),
        "at": MOMENTS.map(lambda n: {"seconds": n // 10**9, "nanos": n % 10**9}),
        "took": MOMENTS.map(lambda n: {"seconds": abs(n) // 10**9, "nanos": abs(n) % 10**9}),
        "tree": st.just({"name": "a", "below": [{"name": "b"}]}),
    },
)  # fmt: skip


def expected(row: dict[str, Any]) -> dict[str, Any]:
    """What a row must be read as, said without the decoder: from what was put in, and what proto3 says of defaults."""

    def priced(m: dict[str, Any]) -> dict[str, Any]:
        return {"currency": m.get("currency", ""), "cents": m.get("cents", 0)}

    def line(m: dict[str, Any]) -> dict[str, Any]:
        return {"sku": m.get("sku", ""), "count": m.get("count"), "prices": [priced(p) for p in m.get("prices", [])]}

    def nanos(m: dict[str, Any] | None) -> int | None:
        return None if m is None else m["seconds"] * 10**9 + m["nanos"]

    state = {0: "UNKNOWN", 1: "PAID", 5: "GONE"}
    zero = dict(id=0, large=0, small=0, fixed=0, signed=0, amount=0.0, rate=0.0, paid=False, note="", raw=b"", numbers=[], words=[])
    found = zero | {name: row.get(name) for name in ("maybe", "text", "card", "cash", "money", "any")}
    found |= {name: row[name] for name in zero if name in row}
    return found | {
        "state": state.get(row.get("state", 0), str(row.get("state"))),
        "states": [state.get(n, str(n)) for n in row.get("states", [])],
        "first": line(row["first"]) if "first" in row else None,
        "lines": [line(m) for m in row.get("lines", [])],
        "counts": sorted(row.get("counts", {}).items()),
        "by_number": [(n, line(m)) for n, m in sorted(row.get("by_number", {}).items())],
        "at": nanos(row.get("at")),
        "took": nanos(row.get("took")),
        "wrapped": row["wrapped"]["value"] if "wrapped" in row else None,
        "named": row["named"]["value"] if "named" in row else None,
        "nothing": True if "nothing" in row else None,
        "tree": {"name": "a", "below": ['{"name": "b"}']} if "tree" in row else None,
    }


def decoded(data: list[bytes]) -> tuple[list[dict[str, Any]], Refused]:
    refused, rows = Refused([], [], []), {}
    for item in DECODER.decode(data, list(range(len(data)))):
        if isinstance(item, Refused):
            refused = item
        else:
            batch = item.rows
            for name in ("at", "took"):
                index = batch.schema.get_field_index(name)
                batch = batch.set_column(index, name, batch.column(name).cast(pa.int64()))
            rows |= dict(zip(item.lines.tolist(), batch.to_pylist(), strict=True))
    return [rows[line] for line in sorted(rows)], refused


@settings(max_examples=60, deadline=None)
@given(st.lists(purchases, min_size=1, max_size=5))
def test_messages_come_back_as_they_went(rows):
    found, refused = decoded([Purchase(**row).SerializeToString() for row in rows])
    assert not refused.lines
    assert found == [expected(row) for row in rows]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(purchases, st.binary(min_size=1, max_size=6), st.integers(0, 30)), min_size=1, max_size=4))
def test_broken_bytes_are_refused_or_read_as_the_library_reads_them(cases):
    data = []
    for row, noise, at in cases:
        sound = Purchase(**row).SerializeToString()
        data.append(sound[:at] + noise + sound[at + len(noise) :])
    found, refused = decoded(data)
    assert len(found) + len(refused.lines) == len(data)
    for line, reason, detail in zip(refused.lines, refused.reasons, refused.details, strict=True):
        assert reason in ("malformed", "out_of_range")
        assert detail
        if reason == "malformed":
            with pytest.raises(Exception, match=r"."):
                json_format.MessageToJson(Purchase.FromString(data[line]))


def test_one_bad_message_costs_no_other():
    good = [Purchase(id=n).SerializeToString() for n in range(1_000)]
    late = Purchase(at={"seconds": 253_402_300_799}).SerializeToString()  # the year 9999, beyond what nanoseconds can say
    data = [*good[:400], b"\xff\xff", *good[400:700], late, *good[700:]]
    found, refused = decoded(data)
    assert [row["id"] for row in found] == list(range(1_000))
    assert list(zip(refused.lines, refused.reasons, strict=True)) == [(400, "malformed"), (701, "out_of_range")]


def test_proto2_has_defaults_groups_and_closed_enums():
    source = """syntax = "proto2"; message Old {
      required int32 id = 1; optional string kind = 2 [default = "none"]; optional int32 n = 3;
      optional group Inner = 4 { optional int32 x = 1; } enum E { A = 1; } optional E e = 5; }"""
    files = _protobuf.DescriptorSet(_protobuf.compiled(source, {}))
    made: Any = message_factory.GetMessageClass(files.named("Old"))
    (item,) = _protobuf.MessageDecoder(files.at([0])).decode([made(id=1, inner={"x": 2}).SerializeToString()], [0])
    assert isinstance(item, Parsed)
    assert item.rows.to_pylist() == [{"id": 1, "kind": "none", "n": None, "inner": {"x": 2}, "e": None}]
    (item,) = _protobuf.MessageDecoder(files.at([0])).decode([b""], [0])
    assert isinstance(item, Parsed)
    assert item.rows.to_pylist() == [{"id": None, "kind": "none", "n": None, "inner": None, "e": None}]


# Frames and schemas.


def zigzag(*numbers: int) -> bytes:
    out = io.BytesIO()
    for number in numbers:
        rest = number << 1
        while rest > 127:
            out.write(bytes([rest & 127 | 128]))
            rest >>= 7
        out.write(bytes([rest]))
    return out.getvalue()


def test_the_frame_says_which_message_it_is_and_references_are_followed():
    with registry.running() as schemas:
        schemas.register_text("money", MONEY, "PROTOBUF")
        references = [{"name": "parts/money.proto", "subject": "money", "version": 1}]
        number = schemas.register_text("purchases-value", SHOP, "PROTOBUF", references)
        first = message_factory.GetMessageClass(FILES.named("shop.v1.First"))
        line = message_factory.GetMessageClass(FILES.named("shop.v1.Purchase.Line"))
        payloads = [
            _schema_registry.framed(number, zigzag(0) + first(only="a").SerializeToString()),
            _schema_registry.framed(number, zigzag(1, 1) + Purchase(id=7, money={"cents": 5}).SerializeToString()),
            _schema_registry.framed(number, zigzag(2, 1, 0) + line(sku="s").SerializeToString()),
            _schema_registry.framed(number, zigzag(1, 9)),
            _schema_registry.framed(number, b"\xff"),
            _schema_registry.framed(number, b""),
            _schema_registry.framed(99, zigzag(0)),
            b"\x0a\x01a",
        ]
        parser = ProtobufPayloads(registry=_schema_registry.SchemaRegistry(schemas.url))
        items = list(parser.parse(payloads, pa.array(["x"] * len(payloads)), "t"))
        rows = {int(item.lines[0]): item.rows.to_pylist()[0] for item in items if isinstance(item, Parsed)}
        assert rows[0] == {"only": "a"}
        assert (rows[1]["id"], rows[1]["money"]) == (7, {"currency": "", "cents": 5})
        assert rows[2] == {"sku": "s", "count": None, "prices": []}
        told = {line: reason for item in items if isinstance(item, Refused) for line, reason in zip(item.lines, item.reasons, strict=True)}
        assert told == {3: "unknown_schema", 4: "malformed", 5: "malformed", 6: "unknown_schema", 7: "no_schema_id"}


@pytest.mark.parametrize(
    ("source", "imports", "message"),
    [
        ("message X {", {}, "no schema of protobuf"),
        ('syntax = "proto3"; import "nowhere.proto";', {}, "nowhere.proto"),
        ('syntax = "proto3";', {"../up.proto": ""}, "an import is called"),
        ('syntax = "proto3"; message X { int32 a = 1; int32 b = 1; }', {}, "has already been used"),
    ],
)
def test_schemas_that_cannot_be_are_told_in_the_words_of_the_compiler(source, imports, message):
    with pytest.raises(ValueError, match=message):
        _protobuf.compiled(source, imports)


def test_a_descriptor_file_is_read_or_told(tmp_path):
    file = tmp_path / "shop.desc"
    for data, name, trouble in ((b"\xff\xff", "X", "no descriptor set"), (b"", "X", "no file"), (None, "Nope", "no message 'Nope'")):
        file.write_bytes(_protobuf.compiled(SHOP, IMPORTS) if data is None else data)
        with pytest.raises(ConfigError, match=trouble):
            _protobuf.decoder_of(str(file), name)
    with pytest.raises(ConfigError, match="No such file"):
        _protobuf.decoder_of(str(tmp_path / "none"), "X")
    assert _protobuf.decoder_of(str(file), "shop.v1.Purchase").schema.field("at").type == pa.timestamp("ns", "UTC")


def test_times_keep_their_nanoseconds():
    (item,) = DECODER.decode([Purchase(at={"seconds": 1, "nanos": 1}).SerializeToString()], [0])
    assert item.rows.column("at")[0].value == 1_000_000_001
    assert item.rows.column("took")[0].as_py() is None
