"""Options: everything wrong is said at once, nearest names are offered, secrets stay references."""

from __future__ import annotations

import pickle
from typing import Any

import apache_beam as beam
import pytest

from support.shelf import ReadFromShelf, WriteToShelf
from tiebeam.connectors import Sink, Source
from tiebeam.errors import ConfigError, Problem
from tiebeam.options import Declared, JobOptions, Secret, declared, option, parse, role
from tiebeam.pipelines import _runner


class ReadFromVault(Source):
    """Reads from a place that needs a password."""

    path: str = option(help="The vault", example="vault://a")
    password: Secret | None = option(None, help="How to get in")
    retry: bool = option(False, help="Try again")


class Options(JobOptions):
    source: Source = role("source", help="Where rows come from", example="shelf")
    sink: Sink | None = role("sink", None, help="Where rows go")
    top: int = option(10, help="Products listed", low=1, high=20_000_000)
    share: float = option(0.5, help="Share kept", low=0, high=1)
    keys: tuple[str, ...] = option((), help="Key columns")
    kind: str = option("new", help="Which rows", choices=("new", "old"))
    loud: bool = option(False, help="Say more")
    name: str | None = option(None, help="A name")

    def check(self):
        if self.top == 13:
            yield Problem("is unlucky", "top")
        if self.loud and self.kind == "old":
            yield "old rows are never loud", "kind", "be quiet"


def find(kind: str, name: str) -> type:
    known = {("source", "shelf"): ReadFromShelf, ("source", "vault"): ReadFromVault, ("sink", "shelf"): WriteToShelf}
    if (kind, name) not in known:
        raise ConfigError(Problem(f"there is no {kind} called {name!r}", fix="did you mean shelf?"))
    return known[kind, name]


def read(*argv: str) -> tuple[Any, list[str]]:
    return parse(Options, list(argv), find, _runner.known_flags)


def problems(*argv: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        read(*argv)
    return [(p.where, p.what) for p in caught.value.problems]


def test_roles_pick_connectors_whose_options_follow_under_their_name():
    options, rest = read("--source=shelf", "--source_rows=7", "--sink", "shelf", "--sink_path=out", "--top=3")
    assert (options.source.rows, options.source.batch_rows, options.sink.path, options.top) == (7, 4, "out", 3)
    assert isinstance(options.source, ReadFromShelf)
    assert rest == []
    assert read("--source=shelf")[0].sink is None


def test_every_problem_is_told_in_one_message():
    told = problems(
        "--source=shelf", "--source_rows=-1", "--sink=shelf", "--top=many", "--share=2", "--kind=odd", "--loud=perhaps", "--topp=3", "stray"
    )
    assert told == [
        ("stray", "stands alone; options are written --name=value"),
        ("--source_rows", "-1 is below the smallest allowed, 0"),
        ("--sink_path", "is required"),
        ("--top", "expected a whole number, not 'many'"),
        ("--share", "2.0 is above the largest allowed, 1"),
        ("--kind", "'odd' is not one of new, old"),
        ("--loud", "expected true or false"),
        ("--topp", "there is no such option"),
    ]


def test_what_is_required_says_so_with_its_example():
    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value) == "  - --source: is required\n    to fix: Where rows come from, such as --source=shelf"


def test_an_unknown_connector_hides_no_other_problem_and_its_options_are_not_judged():
    assert problems("--source=shelv", "--source_anything=1", "--top=0") == [
        ("--source", "there is no source called 'shelv'"),
        ("--top", "0 is below the smallest allowed, 1"),
    ]


def test_options_of_a_role_that_nobody_plays_are_refused():
    assert problems("--source=shelf", "--sink_path=out") == [("--sink_path", "belongs to a sink, and none is chosen")]


@pytest.mark.parametrize(
    ("flag", "nearest"),
    [
        ("--tpo=3", "--top"),
        ("--source_row=3", "--source_rows"),
        ("--direct_num_worker=2", "--direct_num_workers"),
        ("--runer=x", "--runner"),
    ],
)
def test_a_misspelt_flag_is_refused_with_the_nearest(flag, nearest):
    with pytest.raises(ConfigError, match=f"did you mean {nearest}\\?"):
        read("--source=shelf", flag)


def test_flags_of_beam_pass_through_as_they_were_given():
    options, rest = read(
        "--source=shelf",
        "--runner",
        "FnApiRunner",
        "--direct_num_workers=2",
        "--experiments=a",
        "--loud",
        "--experiments=b",
        "--streaming",
        "--no_wait_until_finish",
        "--max-parallelism=4",
        "--job_server_timeout=9",
        "--checkpointing_interval=1000",
    )
    assert options.loud is True
    assert rest == [
        "--runner=FnApiRunner",
        "--direct_num_workers=2",
        "--experiments=a",
        "--experiments=b",
        "--streaming",
        "--no_wait_until_finish",
        "--max_parallelism=4",
        "--job_server_timeout=9",
        "--checkpointing_interval=1000",
    ]


def test_beam_is_not_asked_when_every_flag_is_ours():
    parse(Options, ["--source=shelf"], find, lambda: pytest.fail("asked"))


@pytest.mark.parametrize(
    ("flag", "value"), [("--loud", True), ("--loud=true", True), ("--loud=YES", True), ("--loud=off", False), ("--loud=0", False)]
)
def test_booleans(flag, value):
    assert read("--source=shelf", flag)[0].loud is value


def test_a_boolean_never_swallows_what_follows():
    assert problems("--source=vault", "--source_path=x", "--source_retry", "stray") == [
        ("stray", "stands alone; options are written --name=value")
    ]


def test_values_are_read_as_their_types():
    options, _ = read("--source=shelf", "--top=1_000", "--share=1", "--keys=a, b,", "--name=--odd", "--kind", "old")
    assert (options.top, options.share, options.keys, options.name, options.kind) == (1000, 1.0, ("a", "b"), "--odd", "old")
    assert isinstance(options.share, float)


def test_the_last_of_a_repeated_option_wins():
    assert read("--source=shelf", "--top=1", "--top=2")[0].top == 2


def test_a_flag_without_a_value_needs_one():
    assert problems("--source=shelf", "--top") == [("--top", "needs a value")]


def test_not_a_number_is_refused_and_large_bounds_are_shown_in_full():
    assert problems("--source=shelf", "--share=nan", "--top=20000001") == [
        ("--top", "20000001 is above the largest allowed, 20000000"),
        ("--share", "not a number"),
    ]


def test_what_is_wrong_between_options_names_their_flags():
    assert problems("--source=shelf", "--top=13", "--loud", "--kind=old") == [
        ("--top", "is unlucky"),
        ("--kind", "old rows are never loud"),
    ]


def test_values_given_in_python_are_judged_too():
    with pytest.raises(ConfigError) as caught:
        Options(source=ReadFromShelf(), top=True, share="much", keys=[1], kind=None, name=3)
    assert [(p.where, p.what) for p in caught.value.problems] == [
        ("top", "expected int, not True"),
        ("share", "expected float, not 'much'"),
        ("keys", "expected text, not 1"),
        ("kind", "needs a value"),
        ("name", "expected str, not 3"),
    ]
    options = Options(source=ReadFromShelf(), keys=["a"], share=1)
    assert (options.keys, options.share) == (("a",), 1.0)
    assert Options(source=ReadFromShelf(), keys="a,b").keys == ("a", "b")


def test_secrets_are_given_as_references_and_resolved_only_when_used(monkeypatch, tmp_path):
    options, _ = read("--source=vault", "--source_path=v", "--source_password=env:TIEBEAM_TEST_SECRET")
    monkeypatch.setenv("TIEBEAM_TEST_SECRET", "open sesame")
    assert options.source.password.resolve() == "open sesame"
    kept = tmp_path / "secret"
    kept.write_text("from a file\n")
    assert Secret(f"file:{kept}").resolve() == "from a file"
    monkeypatch.delenv("TIEBEAM_TEST_SECRET")
    with pytest.raises(ConfigError, match="env:TIEBEAM_TEST_SECRET cannot be read here"):
        options.source.password.resolve()


class _OpenFn(beam.DoFn):
    def __init__(self, source):
        self.source = source

    def process(self, _):
        assert self.source.password.resolve() == "open sesame"
        yield 1


def test_a_secret_is_nowhere_but_in_the_worker(monkeypatch):
    monkeypatch.setenv("TIEBEAM_TEST_SECRET", "open sesame")
    source = ReadFromVault("v", password=Secret("env:TIEBEAM_TEST_SECRET"))
    p = beam.Pipeline(runner="FnApiRunner")
    p | beam.Create([1]) | beam.ParDo(_OpenFn(source))
    assert b"open sesame" not in p.to_runner_api().SerializeToString()
    assert b"open sesame" not in pickle.dumps(source)
    assert "open sesame" not in repr(source)
    assert "env:TIEBEAM_TEST_SECRET" in repr(source)
    p.run().wait_until_finish()


def test_a_secret_given_in_clear_is_refused_and_not_repeated():
    with pytest.raises(ConfigError, match="never the secret itself") as caught:
        read("--source=vault", "--source_path=v", "--source_password=open sesame")
    assert "open sesame" not in str(caught.value)
    with pytest.raises(ConfigError, match="expected Secret, not str") as caught:
        ReadFromVault("v", password="open sesame")
    assert "open sesame" not in str(caught.value)


class _First(Declared):
    one: int = option(1, help="One")


class _Second(_First):
    two: int = option(2, help="Two")


def test_options_are_inherited_in_order_and_shown_when_not_default():
    assert [o.name for o in declared(_Second)] == ["one", "two"]
    assert repr(_Second(two=5)) == "_Second(two=5)"


def test_every_job_option_says_what_it_is_for():
    assert all(o.help for o in declared(Options))
    assert [o.name for o in declared(Options) if o.required] == ["source"]
