"""The registry: names lead to modules, what can be said without importing is, and nearest names are offered."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tiebeam import registry
from tiebeam.errors import ConfigError


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A folder of other people's modules, registered by entry points as an installed package would."""
    info = tmp_path / "others-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tiebeam.connectors]\nmoon = others_moon\nbroken = others_broken\ngone = others_gone\njsonl = others_moon\n"
        "[tiebeam.pipelines]\nshine = others_shine\n"
    )
    (tmp_path / "others_moon.py").write_text(
        '"""The moon: bright rows.\n\nMore."""\nraise_if_imported = 1\n'
        "from tiebeam.connectors import Source\nclass ReadFromMoon(Source):\n    'Reads the moon.'\n"
    )
    (tmp_path / "others_broken.py").write_text('"""Needs what nobody has."""\nimport no_such_package\nclass WriteToBroken: pass\n')
    (tmp_path / "others_shine.py").write_text('"""Shines."""\nOptions = build = run = None\n')
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.modules.cache_clear()
    yield tmp_path
    registry.modules.cache_clear()
    sys.modules.pop("others_moon", None)


def test_other_peoples_modules_stand_beside_ours_and_never_replace_them(library):
    found = registry.modules("connectors")
    assert found["moon"] == "others_moon"
    assert found["jsonl"] == "tiebeam.io.jsonl"
    assert list(found) == sorted(found)
    assert registry.pipeline("shine").__doc__ == "Shines."


def test_entries_are_described_without_importing_them(library):
    told = {e.name: e for e in registry.entries("connectors")}
    assert (told["moon"].summary, told["moon"].roles) == ("The moon: bright rows.", ("source",))
    assert (told["broken"].summary, told["broken"].roles) == ("Needs what nobody has.", ("sink",))
    assert told["gone"].summary == "cannot be loaded: no module others_gone"
    assert "others_moon" not in sys.modules


def test_a_connector_is_found_by_role_and_name(library):
    assert registry.connector("source", "moon").__name__ == "ReadFromMoon"
    with pytest.raises(ConfigError, match=r"the connector 'moon' cannot be a sink\n    to fix: one that can: .*broken"):
        registry.connector("sink", "moon")
    with pytest.raises(ConfigError, match="there is no source called 'mon'\n    to fix: did you mean moon\\?"):
        registry.connector("source", "mon")
    with pytest.raises(ConfigError, match="there is no pipeline called 'zzz'\n    to fix: there are: "):
        registry.pipeline("zzz")


def test_a_module_that_needs_what_is_not_installed_says_so(library):
    with pytest.raises(ConfigError, match="'broken' cannot be loaded: No module named 'no_such_package'"):
        registry.connector("sink", "broken")


def test_listing_loads_neither_beam_nor_arrow():
    code = (
        "import sys; from tiebeam import registry; registry.entries('connectors'); registry.entries('pipelines');"
        "print(sorted({'apache_beam', 'pyarrow', 'polars', 'duckdb', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("group", ["connectors", "pipelines"])
def test_every_registered_module_of_ours_says_what_it_is(group):
    for entry in registry.entries(group):
        assert not entry.summary.startswith("cannot be loaded"), entry
        assert entry.summary.endswith("."), entry
        assert entry.roles or group == "pipelines", entry
