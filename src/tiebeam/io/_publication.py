"""Publication: makes the staged files of a run visible, all together, however often and by whomever it is repeated.

    1. intent    _staging/_intents/<run>.json   which staged file becomes which final file; from here on the run will be published
    2. rename    each staged file to its final name, which readers that follow the manifest do not see yet
    3. commit    one entry in the manifest: the table is now the new one
    4. remove    the files that were replaced
    5. sweep     what else the run has staged, then the intent

A run that dies before step 1 has changed nothing. One that dies later is completed, from its intent, by the next publication
at that path, of any run. Every step may be taken twice, also by two processes at once. Names of final files are used once
and never again, so no step can meet the file of another run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import time
import uuid
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

from tiebeam.io import _manifest
from tiebeam.io._folder import Folder, draft_in
from tiebeam.io._manifest import STAGING, Entry
from tiebeam.staging import Staged

ORPHAN_SECS = 7 * 24 * 3600
"""After so long a staged file that nobody has published is removed: it was staged before a crash, and again after it."""
SWEEP_SECS = 600

_swept: dict[str, float] = {}

INTENTS = f"{STAGING}/_intents"
STAGED = ".staged"


class LostPiecesError(Exception):
    """Says that files a run has staged are gone: they are neither staged nor visible."""


def safe(run_id: str) -> str:
    """A run's name as a file name: unique, visible, and of bounded length."""
    name = quote(run_id, safe="")
    if name.startswith((".", "_")):
        name = f"%{ord(name[0]):02X}{name[1:]}"
    return name if len(name) <= 100 else f"{name[:60]}-{hashlib.sha256(run_id.encode()).hexdigest()[:32]}"


def staging_of(run_id: str) -> str:
    """The folder in which a run stages its files."""
    return f"{STAGING}/{safe(run_id)}"


def intent_of(run_id: str) -> str:
    """The file that says that a run is being published."""
    return f"{INTENTS}/{safe(run_id)}.json"


def publish(folder: Folder, run_id: str, mode: str, staged: list[Staged], suffix: str, extensions: tuple[str, ...]) -> bool:
    """Publishes a run, its files' names ending in `suffix`; False when it was published before.

    A folder without a manifest is taken for a table of the files with one of `extensions` in it.
    """
    while True:
        _complete_all(folder)
        if run_id in _manifest.runs(_manifest.entries(folder)):
            _sweep(folder, run_id)
            return False
        _manifest.adopt(folder, extensions, staging_of(run_id))
        try:
            intent = _plan(folder, run_id, mode, staged, suffix)
        except LostPiecesError:
            if run_id in _manifest.runs(_manifest.entries(folder)):
                continue  # a twin has published this run, and swept what we staged
            raise
        if folder.create(intent_of(run_id), json.dumps(intent).encode(), draft_in(staging_of(run_id))):
            break
    done = _complete(folder, intent)["intent_id"] == intent["id"]
    _sweep_orphans(folder)
    return done


def published(folder: Folder) -> set[str]:
    """The runs that are published, and those whose intent the next publication completes."""
    return {intent["run_id"] for intent in _intents(folder)} | set(_manifest.runs(_manifest.entries(folder)))


def discard(folder: Folder, run_id: str) -> None:
    """Removes what a run has staged, unless it has begun to be published: then the next publication completes it."""
    if not folder.exists(intent_of(run_id)):
        folder.remove(folder.names(staging_of(run_id)))
        folder.prune(staging_of(run_id))


def retire(folder: Folder, run_id: str, paths: list[str]) -> None:
    """Takes files, given by full path, out of the table in one step, and removes them."""
    names = {folder.path(name): name for name in _manifest.live(_manifest.entries(folder))}
    gone = [names[path] for path in paths if path in names]
    entry = _manifest.commit(folder, run_id, [], lambda table: [name for name in gone if name in table], staging_of(run_id))
    folder.remove(entry["remove"])
    folder.prune(staging_of(run_id))


def _plan(folder: Folder, run_id: str, mode: str, staged: list[Staged], suffix: str) -> dict[str, Any]:
    present = set(folder.names(staging_of(run_id)))
    pieces = sorted({s.handle: s for s in staged}.values(), key=lambda s: (s.facts["folder"], s.handle))
    moves, add, number = [], [], 0
    for piece in pieces:
        source = f"{staging_of(run_id)}/{piece.handle}{STAGED}"
        if source not in present:
            raise LostPiecesError(f"run {run_id!r}: {folder.path(source)} with {piece.rows} rows is neither staged nor visible")
        while folder.exists(name := f"{piece.facts['folder']}{safe(run_id)}-{number:05}{suffix}"):
            number += 1
        number += 1
        moves.append((source, name))
        facts = {key: value for key, value in piece.facts.items() if key != "folder"}
        add.append({"path": name, "rows": piece.rows, "bytes": piece.bytes, **facts})
    return {"id": uuid.uuid4().hex, "run_id": run_id, "mode": mode, "moves": moves, "add": add}


def _complete_all(folder: Folder) -> None:
    for intent in _intents(folder):
        _complete(folder, intent)


def _intents(folder: Folder) -> Iterator[dict[str, Any]]:
    for name in folder.names(INTENTS):
        try:
            intent = json.loads(folder.read(name))
        except FileNotFoundError:  # completed by another process meanwhile
            continue
        yield intent


def _complete(folder: Folder, intent: dict[str, Any]) -> Entry:
    """Carries out an intent and returns the entry of its run: that of another intent, if a twin published the run before."""
    run_id = intent["run_id"]
    entry = _manifest.runs(_manifest.entries(folder)).get(run_id)
    if entry is None:
        _move(folder, run_id, [(source, name) for source, name in intent["moves"]])
        replaced = functools.partial(_replaced, intent)
        entry = _manifest.commit(folder, run_id, intent["add"], replaced, staging_of(run_id), intent["id"])
    folder.remove(entry["remove"])
    _sweep(folder, run_id)
    return entry


def _move(folder: Folder, run_id: str, moves: list[tuple[str, str]]) -> None:
    present = set(folder.names(staging_of(run_id)))
    gone = folder.move([(source, name) for source, name in moves if source in present])
    gone += [(source, name) for source, name in moves if source not in present]
    lost = [source for source, name in gone if not folder.exists(name)]
    if lost and run_id not in _manifest.runs(_manifest.entries(folder)):
        raise LostPiecesError(
            f"run {run_id!r} was about to be published, but {len(lost)} of its {len(moves)} files are neither staged nor visible, "
            f"the first {folder.path(lost[0])}. Restore them, or give the run up by removing {folder.path(intent_of(run_id))}"
        )


def _replaced(intent: dict[str, Any], table: dict[str, Entry]) -> list[str]:
    if intent["mode"] == "append":
        return []
    if intent["mode"] == "replace":
        return list(table)
    touched = [file["partition"] for file in intent["add"]]
    return [name for name, file in table.items() if any(t.items() <= file["partition"].items() for t in touched)]


def _sweep_orphans(folder: Folder) -> None:
    """Removes what was staged long ago and is not about to be published; looks now and then."""
    now = time.monotonic()
    if now < _swept.get(folder.root, -SWEEP_SECS) + SWEEP_SECS:
        return
    _swept[folder.root] = now
    orphans = [name for name in folder.older(STAGING, ORPHAN_SECS) if not name.startswith(f"{INTENTS}/")]
    folder.remove(orphans)


def _sweep(folder: Folder, run_id: str) -> None:
    folder.remove(folder.names(staging_of(run_id)))
    folder.prune(staging_of(run_id))
    folder.remove([intent_of(run_id)])
