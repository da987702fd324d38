"""Commits under every schedule: the two steps are driven by a model of a runner that crashes, restores and tells late.

The model is Flink's: a checkpoint is a barrier, at which state is copied, and later a message that it is complete, with which every
bundle that is over by then is finalized, also those behind the barrier. One checkpoint at a time; a crash restores the last complete one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import apache_beam as beam
import pyarrow as pa
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from support.shelf import WriteToShelf, on_shelf, staged_on_shelf
from support.streams import dealt
from tiebeam import commits
from tiebeam.commits import _PublishFn, _StageFn
from tiebeam.delivery import Delivery
from tiebeam.errors import ConfigError, TransientError
from tiebeam.io._endless import ReadEndless
from tiebeam.rows import ROW_TIME, RowBatch
from tiebeam.staging import Staged

SHARDS = 2


class Bag:
    def __init__(self, items=()):
        self.items = list(items)

    def read(self):
        return iter(list(self.items))

    def add(self, item):
        self.items.append(item)

    def clear(self):
        self.items = []


class Timer:
    running = False

    def set(self, moment):
        self.running = True


class Sea:
    """A destination that remembers what was staged and, by commit, what was published; rows are numbers."""

    mode, commit_secs, commit_rows, writers = "append", 1, 5, SHARDS

    def __init__(self):
        self.staged: dict[str, list[int]] = {}
        self.published: dict[str, list[int]] = {}
        self.broken = 0

    def location(self):
        return "sea"

    def writer(self, run_id):
        sea = self

        class Writer:
            rows: list[int] = []  # noqa: RUF012 - one writer, one list

            def write(self, batch):
                self.rows = [*self.rows, *batch.column("n").to_pylist()]
                return ()

            def close(self):
                sea.staged[run_id] = self.rows
                return [Staged(run_id, len(self.rows))]

            def abort(self):
                pass

        return Writer()

    def publish(self, run_id, staged):
        if self.broken:
            self.broken -= 1
            raise TransientError("the sea is rough")
        if run_id in self.published:
            return False
        self.published[run_id] = self.staged[run_id]
        return True

    def is_published(self, run_id):
        return run_id in self.published

    def rows(self) -> list[int]:
        return sorted(n for rows in self.published.values() for n in rows)


class World:
    """A job: a source of numbers, Stage and Publish for each shard, and the runner."""

    def __init__(self, publishing: Callable[[Sea], Any] = lambda sea: _PublishFn("Write", sea)):
        self.sea = Sea()
        self.publishing = publishing
        self.at = 0
        self.state = {shard: {name: Bag() for name in ("rows", "held", "last", "waiting")} for shard in range(SHARDS)}
        self.clocks = {shard: Timer() for shard in range(SHARDS)}
        self.callbacks: list[Callable[[], None]] = []
        self.complete = self.snapshot()
        self.barrier: Any = None
        self.ended = False
        self.fresh_process()

    def fresh_process(self):
        commits.PROGRESS = commits._Progress()

    def snapshot(self):
        bags = {shard: {name: list(bag.items) for name, bag in bags.items()} for shard, bags in self.state.items()}
        return self.at, bags, {shard: clock.running for shard, clock in self.clocks.items()}

    # what may happen

    def emit(self, shard: int, count: int):
        if self.ended:
            return
        batch = RowBatch.from_pydict({"n": list(range(self.at, self.at + count))})
        self.at += count
        bags = self.state[shard]
        self.forward(shard, self.stage.process((shard, batch), bags["rows"], bags["held"], bags["last"], self.clocks[shard], Timer()))

    def strike(self, shard: int):
        if not self.clocks[shard].running:
            return
        self.clocks[shard].running = False
        bags = self.state[shard]
        self.forward(shard, self.stage.strike(shard, bags["rows"], bags["held"], bags["last"], self.clocks[shard]))

    def end(self):
        self.ended = True
        for shard, bags in self.state.items():
            if bags["held"].items:
                self.forward(shard, self.stage.finish(shard, bags["rows"], bags["held"], bags["last"], self.clocks[shard]))

    def begin_checkpoint(self):
        if self.barrier is None:
            self.barrier = self.snapshot()

    def complete_checkpoint(self):
        if self.barrier is None:
            return
        self.complete, self.barrier = self.barrier, None
        callbacks, self.callbacks = self.callbacks, []
        for callback in callbacks:
            callback()

    def rough(self, times: int):
        self.sea.broken = times

    def crash(self, with_process: bool):
        self.at, bags, clocks = copy.deepcopy(self.complete)
        self.state = {shard: {name: Bag(items) for name, items in named.items()} for shard, named in bags.items()}
        for shard, running in clocks.items():
            self.clocks[shard].running = running
        self.callbacks, self.barrier = [], None
        self.ended = False
        if with_process:
            self.fresh_process()

    # how

    @property
    def stage(self):
        return _StageFn("Write", self.sea, "run")

    def forward(self, shard, outputs):
        for output in outputs or ():
            publish = self.publishing(self.sea)
            publish.register = self.callbacks.append
            list(publish.process(output.value, self.state[shard]["waiting"], publish) or ())

    def heal(self):
        """No more trouble: the input ends, at once, and the runner goes on until nothing moves."""
        self.end()
        for _ in range(12):
            for shard in self.state:
                self.strike(shard)
            self.begin_checkpoint()
            self.complete_checkpoint()


CALM = (
    st.tuples(st.just("emit"), st.integers(0, SHARDS - 1), st.integers(1, 4)),
    st.tuples(st.just("strike"), st.integers(0, SHARDS - 1)),
    st.tuples(st.just("begin_checkpoint")),
    st.tuples(st.just("complete_checkpoint")),
    st.tuples(st.just("crash"), st.booleans()),
)
ROUGH = st.tuples(st.just("rough"), st.integers(1, 2))


def schedules(*events):
    return st.lists(st.one_of(*events), max_size=40)


def after(world: World, schedule) -> World:
    for name, *arguments in schedule:
        getattr(world, name)(*arguments)
    world.heal()
    return world


@pytest.fixture(autouse=True)
def progress(monkeypatch):
    monkeypatch.setattr(commits, "PROGRESS", commits._Progress())


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schedules(*CALM, ROUGH))
def test_every_row_is_published_once_whatever_happens(schedule):
    world = after(World(), schedule)
    assert world.sea.rows() == list(range(world.at))
    for shard in range(SHARDS):
        of_one = [rows for name, rows in world.sea.published.items() if commits.writer_of(name) == f"run-{shard}"]
        assert of_one == sorted(of_one), "what came later of a key was published earlier"
    assert not any(bag.items for bags in world.state.values() for name, bag in bags.items() if name != "held")
    assert not any(clock.running for clock in world.clocks.values())


class AtTheFirstMessage(_PublishFn):
    """What is nearly right: publishes with the first message that a bundle with the commit is durable."""

    def process(self, keyed, waiting, finalizer):
        _, report = keyed
        if report.schema.names[0] != "poke":
            waiting.add(report)
        names = [commits._name_of(batch) for batch in waiting.read()]
        waiting.clear()
        finalizer.register(lambda: [self.sink.publish(name, []) for name in names])


class WhenTheBundleEnds(_PublishFn):
    """What is plainly wrong: publishes as soon as a commit is there."""

    def process(self, keyed, waiting, finalizer):
        _, report = keyed
        if report.schema.names[0] != "poke":
            self.sink.publish(commits._name_of(report), [])


@pytest.mark.parametrize("variant", [AtTheFirstMessage, WhenTheBundleEnds])
def test_the_model_finds_what_is_wrong_with_simpler_protocols(variant):
    """If it did not, it would prove nothing of the real one."""

    def wrong(schedule):
        world = after(World(lambda sea: variant("Write", sea)), schedule)
        return world.sea.rows() != list(range(world.at))

    try:
        found = find(schedules(*CALM), wrong, settings=settings(max_examples=20_000, deadline=None))
    except NoSuchExample:
        pytest.fail("no schedule shows a loss or a double")
    assert ("crash", True) in found or ("crash", False) in found


def test_a_destination_that_is_away_for_a_while_is_tried_again():
    world = World()
    world.sea.broken = 3
    world.emit(0, 4)
    world.heal()
    assert world.sea.rows() == [0, 1, 2, 3]


def test_a_commit_is_published_by_one_thread_at_a_time():
    """Messages of a runner come in many; two that publish for one writer would fence each other for ever."""
    sea, inside, most = Sea(), 0, 0
    name = commits.name_of("run", 0)
    sea.staged[name] = [1]
    gate = threading.Barrier(4)

    class Slow(Sea):
        def publish(self, run_id, staged):
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            entered.set()
            leave.wait(10)
            inside -= 1
            return sea.publish(run_id, staged)

    entered, leave, slow = threading.Event(), threading.Event(), Slow()

    def message():
        gate.wait(10)
        commits._finalize(slow, {name: 1}, {name: []})

    threads = [threading.Thread(target=message) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert entered.wait(10)
    while sum(thread.is_alive() for thread in threads) > 1:
        pass
    leave.set()
    for thread in threads:
        thread.join(10)
    assert most == 1
    assert sea.rows() == [1]


def test_a_clock_that_goes_back_changes_no_order(monkeypatch):
    """A writer moves to a machine whose clock is behind."""
    first = commits.name_of("run", 0)
    monkeypatch.setattr(commits.time, "time_ns", lambda: 1_600_000_000_000_000_000)
    assert commits.name_of("run", 0, after=first) > first
    assert commits.writer_of(commits.name_of("run", 0, after=first)) == "run-0"


def test_a_commit_that_was_lost_stops_the_job():
    """Neither staged nor visible: going on would be to lose it."""
    world = World()
    world.emit(0, 5)  # as many as are staged at once
    world.sea.staged.clear()
    with pytest.raises(KeyError):
        world.heal()


# On a runner.


def stream(rows: int, **settings: Any) -> beam.PTransform:
    numbers = pa.array(range(rows))
    batch = RowBatch.from_pydict(
        {"n": numbers, ROW_TIME: pa.array([n * 1_000_000 for n in range(rows)]).cast(pa.timestamp("us", tz="UTC"))}
    )
    return ReadEndless(dealt([batch], disorder=5_000_000, seed=1), poll_secs=0.01)


def test_a_stream_on_prism_is_published_with_its_dead_letters(prism, tmp_path):
    out, rejected = str(tmp_path / "out"), str(tmp_path / "rejected")
    p = beam.Pipeline(options=PipelineOptions(prism.flags()))
    with Delivery(p, WriteToShelf(rejected, commit_secs=1), run_id="r"):
        p | stream(500) | WriteToShelf(out, refuse_from=490, commit_secs=1, commit_rows=100)
    p.run().wait_until_finish()
    assert [row["n"] for row in on_shelf(out)] == list(range(490))
    assert {row["reason"] for row in on_shelf(rejected)} == {"too_high"}
    assert len(on_shelf(rejected)) == 10
    assert staged_on_shelf(out) == []


@pytest.mark.parametrize("mode", ["replace"])
def test_a_stream_cannot_replace(mode, tmp_path):
    p = beam.Pipeline(options=PipelineOptions(["--runner=PrismRunner", "--experiments=prism_disable_sdf_split"]))
    with pytest.raises(ConfigError, match="no whole to replace"):
        p | stream(5) | WriteToShelf(str(tmp_path / "out"), mode=mode)


def test_a_stream_has_no_share_of_rejected_rows(tmp_path):
    p = beam.Pipeline(options=PipelineOptions(["--runner=PrismRunner", "--experiments=prism_disable_sdf_split"]))
    with pytest.raises(ConfigError, match="has no share"), Delivery(p, max_rejected_ratio=0.1):
        p | stream(5) | WriteToShelf(str(tmp_path / "out"))
