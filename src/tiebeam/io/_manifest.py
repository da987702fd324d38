"""The manifest: a log inside a table's folder that says which files the table consists of.

    <path>/_manifest/00000000000000000007.json
    {"version": 7, "run_id": "2026-11-24", "intent_id": "…", "committed_at": "…", "tiebeam": "0.1.0", "add": [...], "remove": [...]}

Each entry is created once and never changed; the table is what the entries add, less what they remove. Its first entry adopts the
data files that the folder already held. An added file has `path` (relative), `rows`, `bytes`, `sha256`, `columns` (name to
Arrow type), `min` and `max` per column (numbers as numbers, times and decimals as text, only short text), and
`partition` (key to value); of an adopted file only `path`, `bytes` and `partition` are known.

Two writers at once: both try to create the next entry, one does, the other takes the entry after it. Locally that holds by the
file system, on gs:// by a precondition (ifGenerationMatch=0); elsewhere Beam's FileSystems have no exclusive create, so one table
must have one writer at a time there.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any

from tiebeam import __version__
from tiebeam.errors import BadFileError
from tiebeam.io._folder import Folder, draft_in, folder_at
from tiebeam.io._hive import partition_of

LOG = "_manifest"
STAGING = "_staging"

Entry = dict[str, Any]
_REMEMBERED = 64
_lock = threading.Lock()
_known: dict[str, tuple[Any, list[dict[str, Any]]]] = {}  # entries never change: a stream that publishes every second reads each once
_ENTRY = re.compile(rf"{LOG}/(\d{{20}})\.json")


def committed_files(path: str) -> list[str] | None:
    """Full paths of the files a table consists of; None when the folder has no manifest."""
    folder = folder_at(path)
    log = entries(folder)
    return [folder.path(name) for name in live(log)] if log else None


def committed_runs(path: str) -> set[str]:
    """The runs that were published to a table."""
    return set(runs(entries(folder_at(path))))


def files(path: str) -> list[Entry]:
    """What the manifest says of each file of a table."""
    return list(live(entries(folder_at(path))).values())


def entries(folder: Folder) -> list[Entry]:
    """The log, oldest entry first; empty when there is none."""
    names = [name for name in folder.names(LOG) if _ENTRY.fullmatch(name)]
    if names != [_name(version) for version in range(len(names))]:
        names = [name for name in folder.names(LOG) if _ENTRY.fullmatch(name)]  # a listing may miss what is created meanwhile
    if names != [_name(version) for version in range(len(names))]:
        raise BadFileError(f"{folder.path(LOG)}: an entry is missing between {names[0]} and {names[-1]}; restore it from a copy")
    if not names:
        return []
    with _lock:
        stamps, known = _known.get(folder.root, (None, []))
    same = len(known) <= len(names) and stamps == _stamps(folder, names[: len(known)])
    log = [*known] if same else []
    log += [_parse(folder, name) for name in names[len(log) :]]
    with _lock:
        _known.pop(folder.root, None)
        _known[folder.root] = _stamps(folder, names), [*log]
        while len(_known) > _REMEMBERED:
            del _known[next(iter(_known))]
    return log


def _stamps(folder: Folder, names: list[str]) -> Any:
    """What tells a log from another that came in its place."""
    return [folder.stamp(name) for name in (names[0], names[-1])] if names else None


def live(log: Iterable[Entry]) -> dict[str, Entry]:
    """The files that a log leaves in the table, by relative path."""
    table: dict[str, Entry] = {}
    for entry in log:
        for name in entry["remove"]:
            table.pop(name, None)
        table.update((file["path"], file) for file in entry["add"])
    return table


def runs(log: Iterable[Entry]) -> dict[str, Entry]:
    """The entries of a log by run."""
    return {entry["run_id"]: entry for entry in log if entry["run_id"] is not None}


def adopt(folder: Folder, extensions: Iterable[str], scratch: str) -> None:
    """Begins the log of a table that has none, with the data files that lie in its folder.

    Done before a run moves anything, so that nothing of a run that is under way can be adopted.
    """
    if entries(folder):
        return
    ours = re.compile(rf".+\.({'|'.join(map(re.escape, extensions))})(\.(gz|zst|bz2))?")
    found = [{"path": name, "bytes": size, "partition": partition_of(name)} for name, size in folder.data_files() if ours.fullmatch(name)]
    _create(folder, 0, None, None, found, [], scratch)


def commit(
    folder: Folder,
    run_id: str,
    add: list[Entry],
    replaced: Callable[[dict[str, Entry]], list[str]],
    scratch: str,
    intent_id: str | None = None,
) -> Entry:
    """Adds a run to the log and returns its entry, the present one if the run is there already.

    `replaced` is given the files of the table as it is just before, and names those that the run replaces.
    """
    while True:
        log = entries(folder)
        if run_id in (known := runs(log)):
            return known[run_id]
        _create(folder, len(log), run_id, intent_id, add, replaced(live(log)), scratch)


def _create(
    folder: Folder, version: int, run_id: str | None, intent_id: str | None, add: list[Entry], remove: list[str], scratch: str
) -> None:
    entry = {
        "version": version,
        "run_id": run_id,
        "intent_id": intent_id,
        "committed_at": datetime.now(UTC).isoformat(),
        "tiebeam": __version__,
        "add": add,
        "remove": remove,
    }
    folder.create(_name(version), json.dumps(entry, ensure_ascii=False, indent=1).encode(), draft_in(scratch))


def _name(version: int) -> str:
    return f"{LOG}/{version:020}.json"


def _parse(folder: Folder, name: str) -> Entry:
    try:
        entry = json.loads(folder.read(name))
        if entry["version"] != int(name[-25:-5]) or not isinstance(entry["add"], list) or not isinstance(entry["remove"], list):
            raise ValueError("it is not an entry of a manifest")
        return entry
    except (ValueError, KeyError, TypeError) as e:
        raise BadFileError(f"{folder.path(name)}: damaged ({e}); restore it from a copy") from e
