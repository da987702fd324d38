"""What can be said of every connector without a place to write to: ours, and those that entry points register."""

from __future__ import annotations

import inspect

import pytest
from apache_beam.internal import pickler

from contract import targets
from tiebeam import registry
from tiebeam.connectors import Sink, Source
from tiebeam.options import Secret, declared

CONNECTORS = [(role, name) for role in ("source", "sink") for name in targets.named(role, placed=False)]


@pytest.fixture(params=CONNECTORS, ids=[f"{name} {role}" for role, name in CONNECTORS])
def connector(request):
    return registry.connector(*request.param)


def test_it_is_a_source_or_a_sink(connector):
    assert issubclass(connector, Source if connector.__name__.startswith("ReadFrom") else Sink)


def test_it_says_what_it_does(connector):
    first = inspect.getdoc(connector).splitlines()[0]
    assert first.split()[0].rstrip(",") in ("Reads", "Writes"), first
    assert first.endswith("."), first


def test_every_option_says_what_it_is_for(connector):
    for o in declared(connector):
        assert o.help, o.name
        assert o.help[0].isupper(), f"{o.name}: {o.help}"
        assert o.name == o.name.lower(), o.name
        assert o.example or not o.required, f"{o.name} is required and shows no example"
        assert o.kind is not str or "password" not in o.name, f"{o.name} must be a Secret"


def test_units_stand_in_names(connector):
    units = {"secs": "seconds", "bytes": "bytes", "rows": "rows"}
    for o in declared(connector):
        for suffix, unit in units.items():
            if o.name.endswith(f"_{suffix}"):
                assert o.unit == unit, f"{o.name}: its unit is {o.unit!r}"


def test_defaults_are_allowed_values(connector):
    for o in declared(connector):
        if not o.required:
            assert o.judge(o.default) is None, o.name
            assert o.check(o.default) is None, o.name


def test_capabilities_are_declared(connector):
    if issubclass(connector, Source):
        assert isinstance(connector.bounded, bool)
        assert isinstance(connector.emits_changes, bool)
        assert all(isinstance(kind, str) for kind in connector.formats)
        return
    assert connector.delivery in ("exactly_once", "at_least_once")
    assert connector.modes
    mode = next(o for o in declared(connector) if o.name == "mode")
    assert mode.choices == tuple(connector.modes)
    assert mode.default in connector.modes


def test_it_does_what_its_role_must_do(connector):
    required = ("read", "ping", "sample") if issubclass(connector, Source) else ("ping", "location", "writer", "publish", "discard")
    base = Source if issubclass(connector, Source) else Sink
    assert [name for name in required if getattr(connector, name) is getattr(base, name)] == []


def test_it_holds_no_secret_in_clear(connector):
    for o in declared(connector):
        assert o.kind is Secret or not {"password", "token", "secret", "key_file"} & set(o.name.split("_")), o.name


def test_every_connector_of_ours_has_a_target():
    ours = set(registry.CONNECTORS)
    assert ours == targets.TARGETS.keys() | targets.UNPLACED.keys(), "give it an entry in contract/targets.py"


@pytest.mark.parametrize("name", targets.named("sink"))
def test_sinks_travel_and_show_themselves(name, tmp_path):
    sink = targets.sink(name, tmp_path)
    back = pickler.loads(pickler.dumps(sink))
    assert repr(back) == repr(sink)
    assert targets.target(name).shown(tmp_path) in repr(sink)


@pytest.mark.parametrize("name", targets.named("source"))
def test_sources_travel_and_show_themselves(name, tmp_path):
    source = targets.source(name, tmp_path)
    back = pickler.loads(pickler.dumps(source))
    assert repr(back) == repr(source)
