"""Where the dead letters of a replay lie, in a folder of files or in a table: what it takes, and what it leaves when it is done."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from tiebeam import files as storage
from tiebeam.dead_letters import SCHEMA, letters
from tiebeam.delivery import JOBS, keep_at, parked_beside
from tiebeam.errors import ConfigError, Problem
from tiebeam.rows import ROW_POSITION, RowBatch

PLANS = "_replays"


@dataclass(frozen=True)
class Taken:
    """What a replay runs again: letters by the job they came from, and lines that are no letters."""

    id: str
    letters: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    broken: list[tuple[str, bytes]] = field(default_factory=list)

    def add(self, letter: dict[str, Any]) -> None:
        self.letters.setdefault(f"{letter['pipeline']}\n{letter['run_id']}", []).append(letter)


class Store(Protocol):
    """A place of dead letters."""

    def take(self) -> Taken | None:
        """The letters of a replay that has not ended, else of a new one; None when none wait. The same until `close`."""

    def argv_of(self, run_id: str) -> str | None:
        """What was kept of a job, as JSON."""

    def close(self, taken: Taken) -> None:
        """Removes what was taken, in one step."""


def store_at(place: str) -> Store:
    """The store at a place; raises ConfigError when there is none."""
    sink: Any = keep_at(place)
    if hasattr(sink, "letter_table"):
        return TableStore(sink)
    if not storage.exists(place):
        raise ConfigError(Problem(f"there is no store at {place}", "--dead_letters", "the folder that a run's summary names as `rejected`"))
    return FolderStore(place, sink)


def park(place: str, taken: Taken) -> None:
    """Parks lines that are no letters."""
    if not taken.broken:
        return
    sink = keep_at(parked_beside(place))
    writer = sink.writer(taken.id)
    details = ["this line of the store is no dead letter"] * len(taken.broken)
    lines, positions = [line for _, line in taken.broken], [position for position, _ in taken.broken]
    list(writer.write(letters("replay", "broken_letter", details, lines, "text", positions=positions).batch) or ())
    sink.publish(taken.id, writer.close())


class TableStore:
    """Letters in a table, which a sink gives access to."""

    def __init__(self, sink: Any):
        self.table = sink.letter_table()

    def take(self) -> Taken | None:
        if (found := self.table.take()) is None:
            return None
        taken = Taken(found[0])
        for letter in found[1]:
            taken.add({**letter, "row_time": None, "failed_at": None})
        return taken

    def argv_of(self, run_id: str) -> str | None:
        return self.table.note(run_id)

    def close(self, taken: Taken) -> None:
        self.table.retire()


class FolderStore:
    """Letters in files of lines, written by a sink of files, which lists and retires them besides."""

    def __init__(self, path: str, sink: Any):
        self.path = path
        self.sink = sink
        self.plan: dict[str, Any] | None = None

    def take(self) -> Taken | None:
        self.plan = self._open_plan(self.sink.files())
        return self._read(self.plan["id"], self.plan["files"]) if self.plan else None

    def argv_of(self, run_id: str) -> str | None:
        kept = storage.join(self.path, JOBS, f"{run_id}.json")
        return storage.read(kept).decode() if storage.exists(kept) else None

    def close(self, taken: Taken) -> None:
        assert self.plan
        self.sink.retire(f"{taken.id}-done", self.plan["files"])
        self._close_plan(taken.id)

    def _close_plan(self, plan_id: str) -> None:
        storage.remove(storage.join(self.path, PLANS, f"{plan_id}.json"))

    def _open_plan(self, files: list[str]) -> dict[str, Any] | None:
        """The plan of a replay that has not ended, else a new one over all files of the store; None when there are none."""
        folder = storage.join(self.path, PLANS)
        if waiting := storage.ending(folder, ".json"):
            return json.loads(storage.read(min(waiting)))
        if not files:
            return None
        plan = {"id": "replay-" + hashlib.sha256("\n".join(sorted(files)).encode()).hexdigest()[:12], "files": sorted(files)}
        storage.write(storage.join(folder, f"{plan['id']}.json"), json.dumps(plan).encode())
        return plan

    @staticmethod
    def _read(plan_id: str, files: Iterable[str]) -> Taken:
        """Reads letters, each once: an attempt that failed after it kept its letters, and was run again, left them twice."""
        taken = Taken(plan_id)
        seen: set[tuple[Any, ...]] = set()
        for path in files:
            if not storage.exists(path):  # retired by a replay that died before it closed its plan
                continue
            offset = 0
            for line in storage.read(path).splitlines(keepends=True):
                letter = _letter(line)
                if letter is None:
                    taken.broken.append((f"{path}:{offset}", line))
                elif (same := tuple(letter[name] for name in ("run_id", "step", ROW_POSITION, "original", "attempt"))) not in seen:
                    seen.add(same)
                    taken.add(letter)
                offset += len(line)
        return taken


def _letter(line: bytes) -> dict[str, Any] | None:
    """Reads a line of the store; None when it is no letter."""
    try:
        row = json.loads(line)
        row["original"] = base64.b64decode(row["original"] or "", validate=True)
        row["attempt"] = int(row["attempt"])
        if not isinstance(row["pipeline"], str) or not isinstance(row["run_id"], str):
            return None
        RowBatch.from_pylist([{**row, "row_time": None, "failed_at": None}], schema=SCHEMA)
    except (ValueError, KeyError, TypeError, pa.ArrowException):
        return None
    return {**row, "row_time": None, "failed_at": None}
