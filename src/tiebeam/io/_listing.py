"""Which files a path means: one file, a folder with everything below it, or a glob, on any of Beam's filesystems.

Names starting with `_` or `.` are hidden, as in Hadoop, unless the path itself spells the `_` or `.` out. A folder that our file
sink wrote holds a `_manifest/`; of such a folder only the committed files count. Local folders are listed here and not by Beam,
which passes silently over a folder it may not read.

Partition columns in paths, `day=2026-01-02/`, follow Hive: values are URL-quoted, `__HIVE_DEFAULT_PARTITION__` is null.
"""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import glob
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from apache_beam.io.filesystem import BeamIOError
from apache_beam.io.filesystems import FileSystems

from tiebeam import gcs
from tiebeam.errors import ConfigError, Problem
from tiebeam.io._hive import partition_of
from tiebeam.io._manifest import committed_files

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bzip2"}

_WHOLE = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True)
class FoundFile:
    path: str
    size: int
    modified: float = 0.0


def local_path(path: str) -> str | None:
    """The path on this machine, absolute, so that it means the same in every process; None for other filesystems."""
    if path.startswith("file://"):
        path = path[len("file://") :]
    return None if FileSystems.get_scheme(path) else posixpath.abspath(path)


def find_files(path: str, extensions: tuple[str, ...]) -> list[FoundFile]:
    """Lists the files of a path in order, empty ones left out; raises ConfigError when there is nothing to list or no right to."""
    local = local_path(path)
    if local is None:
        found = _remote(path, extensions)
    else:
        try:
            found = _local(local, extensions)
        except OSError as e:
            raise ConfigError(Problem(f"{e.filename or path} cannot be read ({e.strerror})", path, "grant the right to read it")) from e
    return sorted((f for f in found if f.size), key=lambda f: f.path)


def _local(path: str, extensions: tuple[str, ...]) -> list[FoundFile]:
    if posixpath.isfile(path):
        names = [path]
    elif posixpath.isdir(path):
        names = _of_folder(path, extensions)
    elif glob.has_magic(path):
        fixed, pattern = _fixed(path)
        matches = list(_matching(fixed or "/", pattern.split("/")))
        names = [n for m in matches for n in (_below(m, extensions) if posixpath.isdir(m) else [m])]
        if not names:
            raise ConfigError(Problem("no file matches", path, f"check the pattern; it is looked up from {fixed or '/'}"))
        names = _committed_of(fixed, names)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            Path(path).stat()  # raises when a folder above may not be entered
        raise ConfigError(Problem("there is no such file or folder", path, _nearest(path)))
    if locked := [n for n in names if not os.access(n, os.R_OK)]:
        raise ConfigError(Problem(f"{locked[0]} cannot be read (permission denied)", path, "grant the right to read it"))
    stats = [(n, Path(n).stat()) for n in dict.fromkeys(names)]
    return [FoundFile(n, s.st_size, s.st_mtime) for n, s in stats]


def _remote(path: str, extensions: tuple[str, ...]) -> list[FoundFile]:
    pattern, path = glob.has_magic(path), path.rstrip("/")
    exact, below = (_of_gcs if gcs.is_gcs(path) else _of_beam)(path)
    fixed = (_fixed(path)[0] if pattern else path) + "/"
    spelled = path.split("/")
    inside = [m for m in below if not _hidden_below(m.path, fixed, spelled) and _counts(m.path, extensions)]
    direct = [m for m in exact if not m.path.endswith("/") and (not pattern or not _hidden_below(m.path, fixed, spelled))]
    if not direct and not inside:
        some = f"; it holds {len(below)} others, such as {below[0].path}" if below else ""
        raise ConfigError(Problem(f"there is no file of {' or '.join(extensions)} here{some}", path, "check the path"))
    found = {m.path: m for m in [*direct, *inside]}
    names = list(found) if direct and not pattern else _committed_of(fixed.rstrip("/"), list(found))
    return [found[n] for n in names]


def _of_beam(path: str) -> tuple[list[FoundFile], list[FoundFile]]:
    """What is at a path or matches it, and what is below that, by Beam's FileSystems."""
    try:
        exact, below = (r.metadata_list for r in FileSystems.match([path, path + "/**"]))
    except ValueError as e:
        raise ConfigError(Problem("no filesystem serves this path", path, "install the extra of apache-beam for it, as [gcp]")) from e
    except BeamIOError as e:
        raise ConfigError(Problem(f"cannot be listed: {e}", path, "check the path and the right to list it")) from e
    here, there = ([FoundFile(m.path, m.size_in_bytes, m.last_updated_in_seconds or 0.0) for m in found] for found in (exact, below))
    return here, there


def _of_gcs(path: str) -> tuple[list[FoundFile], list[FoundFile]]:
    """The same of Cloud Storage; an object whose name looks like a pattern is meant when there is one."""
    if trouble := gcs.trouble(path.partition("*")[0], writing=False):
        raise ConfigError(Problem(trouble, path, "check the path, and the right to list and read it (Storage Object Viewer)"))
    try:
        exact = gcs.find(path)
        if exact or not glob.has_magic(path):
            return [_found(exact)] if exact else [], [_found(o) for o in gcs.below(path + "/")]
        whole, inside = (re.compile(FileSystems.get_filesystem(path).translate_pattern(p)) for p in (path, path + "/**"))
        objects = [_found(o) for o in gcs.below(re.split(r"[*?[]", path, maxsplit=1)[0])]
    except OSError as e:
        fix = "check the path, and the right to list and read it (Storage Object Viewer)"
        raise ConfigError(Problem(f"cannot be listed: {e.strerror or e}", path, fix)) from e
    return [f for f in objects if whole.fullmatch(f.path)], [f for f in objects if inside.fullmatch(f.path)]


def _found(of: gcs.Object) -> FoundFile:
    return FoundFile(of.path, of.size, of.modified)


def _hidden_below(path: str, fixed: str, spelled: list[str]) -> bool:
    names = path.split("/")
    return any(_hidden(n, spelled[i] if i < len(spelled) else "") for i, n in enumerate(names) if i >= fixed.count("/"))


def _hidden(name: str, spelled: str) -> bool:
    return name[:1] in ("_", ".") and not spelled.startswith(name[:1])


def _counts(name: str, extensions: tuple[str, ...]) -> bool:
    stem, end = posixpath.splitext(name.lower())
    return (stem if end in COMPRESSED else name.lower()).endswith(extensions)


def _fixed(pattern: str) -> tuple[str, str]:
    """Splits a glob into the folder before its first wildcard, and the rest."""
    names = pattern.split("/")
    first = next(i for i, n in enumerate(names) if glob.has_magic(n))
    return "/".join(names[:first]), "/".join(names[first:])


def _matching(folder: str, pattern: list[str]) -> Iterator[str]:
    head, rest = pattern[0], pattern[1:]
    if not glob.has_magic(head):
        path = posixpath.join(folder, head)
        if posixpath.exists(path):
            yield from _matching(path, rest) if rest else [path]
        return
    if head == "**":
        yield from _matching(folder, rest or ["*"])
    for entry in sorted(os.scandir(folder), key=lambda e: e.name):
        if head == "**":
            if entry.is_dir() and not entry.is_symlink() and not _hidden(entry.name, ""):
                yield from _matching(entry.path, pattern)
        elif fnmatch.fnmatchcase(entry.name, head) and not _hidden(entry.name, head):
            if not rest:
                yield entry.path
            elif entry.is_dir():
                yield from _matching(entry.path, rest)


def _below(folder: str, extensions: tuple[str, ...]) -> list[str]:
    taken: list[str] = []
    others: list[str] = []
    for here, names in _walk(folder, frozenset()):
        for name in names:
            (taken if _counts(name, extensions) else others).append(posixpath.join(here, name))
    if not taken:
        what = f"holds no file of {' or '.join(extensions)}, but others, such as {others[0]}" if others else "is empty"
        raise ConfigError(Problem(f"the folder {what}", folder, "check the path, or give a glob that matches the files meant"))
    return taken


def _walk(folder: str, above: frozenset[str]) -> Iterator[tuple[str, list[str]]]:
    real = posixpath.realpath(folder)
    if real in above:  # a link back to a folder that we are in
        return
    entries = sorted((e for e in os.scandir(folder) if not _hidden(e.name, "")), key=lambda e: e.name)
    yield folder, [e.name for e in entries if e.is_file()]
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry.path, above | {real})


def _of_folder(folder: str, extensions: tuple[str, ...]) -> list[str]:
    """The files of a folder: all below it, or those that its manifest lists."""
    listed = committed_files(folder)
    if listed is None:
        return _committed_of(folder, _below(folder, extensions))
    if missing := [name for name in listed if not posixpath.exists(name)]:
        raise ConfigError(Problem(f"the manifest lists {missing[0]}, which is not there", folder, "restore it, or write the table again"))
    if others := [name for name in listed if not _counts(name, extensions)]:
        raise ConfigError(Problem(f"the table consists of other files, such as {others[0]}", folder, "read it in the format of its files"))
    return listed


def _committed_of(folder: str, names: list[str]) -> list[str]:
    """Keeps what the manifest of a table lists, when the folder is one or a partition of one."""
    while "=" in posixpath.basename(folder):
        folder = posixpath.dirname(folder)
    listed = committed_files(folder)
    return names if listed is None else sorted(set(names) & set(listed))


def _nearest(path: str) -> str:
    folder = posixpath.dirname(path)
    if not posixpath.isdir(folder):
        return f"there is no folder {folder} either"
    near = difflib.get_close_matches(posixpath.basename(path), [p.name for p in Path(folder).iterdir()], n=1)
    return f"did you mean {posixpath.join(folder, near[0])}?" if near else "check the path"


def partition_types(paths: Iterable[str]) -> dict[str, pa.DataType]:
    """The partition columns of a set of files: int64 when every value is a whole number written plainly, else string."""
    values: dict[str, set[str]] = {}
    for path in paths:
        for name, value in partition_of(path).items():
            values.setdefault(name, set()).update([value] if value is not None else [])
    return {name: pa.int64() if seen and all(map(_is_whole, seen)) else pa.string() for name, seen in values.items()}


def _is_whole(text: str) -> bool:
    return bool(_WHOLE.fullmatch(text)) and -(2**63) <= int(text) < 2**63
