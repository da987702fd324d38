"""The seam of every connector: what a Source and a Sink declare and do.

A connector is a module with a class `ReadFromX(Source)`, a class `WriteToX(Sink)`, or both. Their fields are
`option()`s. What they can do is data on the class, so that an impossible pair is refused when the graph is built.

    class ReadFromX(Source):                        class WriteToX(Sink):
        path: str = option(help="…")                    path: str = option(help="…")
        def ping(self): …                               def ping(self): …
        def sample(self, rows): …                       def location(self): …
        def read(self, begin): …                        def writer(self, run_id): …
                                                        def publish(self, run_id, staged): …

A sink works in two phases. `Writer` makes rows durable but invisible and hands out `Staged` pieces; `publish` makes
pieces visible, all together, and is idempotent: the runner may call it again. `tiebeam.delivery` drives both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import apache_beam as beam

from tiebeam import delivery
from tiebeam.dead_letters import Letters
from tiebeam.errors import ConfigError, Problem
from tiebeam.options import Declared, option
from tiebeam.rows import RowBatch
from tiebeam.staging import Staged, Writer


@dataclass(frozen=True)
class Span:
    """The rows of a run by cursor: `after < cursor <= upto`. Values of cursors are text: digits, or a time in ISO 8601."""

    after: str | None
    upto: str


class Source(Declared, beam.PTransform):
    """Reads rows: from the beginning of a pipeline to row batches, and rejected rows to dead letters."""

    bounded = True
    emits_changes: ClassVar[bool] = False
    formats: ClassVar[tuple[str, ...]] = ()
    """The `original_format`s of dead letters that `decode` can read again."""

    cursor = cast("str | None", None)
    """The column by which a run reads only what is new; a source that can overrides it by options, `cursor_overlap_secs` too."""
    cursor_overlap_secs = 0
    span = cast("Span | None", None)
    """The `Span` of this run, set before the graph is built: `sample` and `read` keep to it."""

    def __post_init__(self):
        beam.PTransform.__init__(self)
        super().__post_init__()

    def expand(self, begin: Any) -> beam.PCollection:
        return delivery.note_source(begin.pipeline, self.label, lambda: self.read(begin))

    def read(self, begin: Any) -> beam.PCollection:
        """Builds the reading part of the graph and returns its row batches."""
        raise NotImplementedError

    def ping(self) -> None:
        """Reaches the outside system and checks rights; raises ConfigError. Moves nothing."""

    def sample(self, rows: int) -> RowBatch | None:
        """Reads up to `rows` first rows, as `read` would deliver them; None when there are none."""
        return None

    def fingerprint(self) -> str | None:
        """Names the present content of what is read, so that the same job on the same content is recognised; None: unknown."""
        return None

    def origin(self) -> str:
        """Names what is read, whatever it holds at present: runs by cursor of one origin go on from each other."""
        raise NotImplementedError

    def newest(self, after: str | None) -> tuple[str | None, int]:
        """The greatest value of the cursor above `after`, None when there is none; and how many rows have no value, and are never read."""
        raise NotImplementedError

    def settle(self) -> None:
        """Told that all that was read is published, by the process that ran the job to its end: what waits for that is acknowledged."""

    def decode(self, originals: list[bytes], positions: list[str | None], step: str) -> Iterable[RowBatch | Letters]:
        """Parses dead letters of one of `formats` again, exactly as `read` parses the same bytes in their place."""
        raise NotImplementedError


class Sink(Declared, beam.PTransform):
    """Writes rows: from row batches to reports of what was staged (`Staged.SCHEMA`).

    They are published together at the end of the run, or, when the input never ends, in commits (tiebeam.commits).
    """

    modes: ClassVar[tuple[str, ...]] = ("append", "replace")
    takes_changes: ClassVar[bool] = False
    takes_unbounded: ClassVar[bool] = False
    tells_runs: ClassVar[bool] = False
    """Whether `runs` can tell what was published, so that a cursor can be kept at the destination."""

    mode = "append"
    delivery = "exactly_once"

    commit_secs: int = option(
        10, help="On an input without end: how often what has come is published", unit="seconds", low=1, high=86_400, by_name=True
    )
    commit_rows: int = option(
        1_000_000, help="On an input without end: publish sooner once a writer holds so many rows", unit="rows", low=1, by_name=True
    )
    writers: int = option(2, help="On an input without end: how many writers work side by side", low=1, high=1000, by_name=True)

    def __post_init__(self):
        beam.PTransform.__init__(self)
        super().__post_init__()

    def expand(self, rows: beam.PCollection) -> beam.PCollection:
        if not rows.is_bounded and not self.takes_unbounded:
            raise ConfigError(Problem(f"{type(self).__name__} takes bounded input only", self.label, "bound the source"))
        return delivery.deliver(self, rows)

    def ping(self) -> None:
        """Reaches the outside system and checks that it can be written; raises ConfigError. Changes nothing."""

    def location(self) -> str:
        """Where the output is, for people, unique among the sinks of a pipeline: a path, `file.duckdb#table`."""
        raise NotImplementedError

    def writer(self, run_id: str) -> Writer:
        """Opens a writer for one bundle of the run."""
        raise NotImplementedError

    def publish(self, run_id: str, staged: list[Staged]) -> bool:
        """Makes every piece visible, in one step where the system has one; False when the run was already published.

        Called once all rows of the run are staged, and perhaps again with the same arguments.
        """
        raise NotImplementedError

    def is_published(self, run_id: str) -> bool:
        """Whether a run, or a commit of one that never ends, is visible."""
        raise NotImplementedError

    def runs(self, prefix: str) -> list[str]:
        """The runs whose names begin so and that are published, or sure to be by the next publication."""
        raise NotImplementedError

    def discard(self, run_id: str) -> None:
        """Removes what the run staged and did not begin to publish; never raises."""
