"""The folder of a table: the few file operations that staging, publishing and the manifest are made of.

Names are relative to the folder and use `/`. Local folders are reached directly, so that what is written is durable
(fsync) and what is created is created once (link); Cloud Storage too, by preconditions. Any other path goes through Beam's
FileSystems, which offer neither: an object there is durable when its writer is closed, and two processes that create the same
name at the same instant may both be told that they did.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from apache_beam.io.filesystem import BeamIOError, CompressionTypes
from apache_beam.io.filesystems import FileSystems

from tiebeam import gcs
from tiebeam.io._hive import is_hive

_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def folder_at(path: str) -> Folder:
    """The folder at a path: local, of Cloud Storage, or of any scheme that Beam's FileSystems know."""
    if gcs.is_gcs(path):
        return GcsFolder(path)
    return LocalFolder(path) if FileSystems.get_scheme(path) is None else RemoteFolder(path)


class LocalFolder:
    """Reaches a folder of this machine."""

    def __init__(self, path: str):
        self.root = path.rstrip("/") or "/"

    def path(self, name: str) -> str:
        return os.path.join(self.root, *name.split("/"))  # noqa: PTH118

    def open(self, name: str) -> BinaryIO:
        """Opens a new file for writing; makes the folders above it."""
        path = Path(self.path(name))
        for _ in range(9):  # the sweep of another run may remove an empty folder just made
            with contextlib.suppress(FileNotFoundError):
                path.parent.mkdir(parents=True, exist_ok=True)
                return path.open("xb")
        raise FileNotFoundError(errno.ENOENT, "the folder vanishes as often as it is made", str(path.parent))

    def seal(self, stream: BinaryIO) -> None:
        """Closes a written file once it is durable."""
        with stream:
            stream.flush()
            os.fsync(stream.fileno())

    def create(self, name: str, data: bytes, draft: str) -> bool:
        """Creates a file whole, durably, and only if it is not there; `draft` names a file to write first."""
        target, path = Path(self.path(name)), Path(self.path(draft))
        while True:
            stream = self.open(draft)
            try:
                with stream:
                    stream.write(data)
                    self.seal(stream)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.hardlink_to(path)
            except FileExistsError:
                return False
            except FileNotFoundError:
                continue  # another process that publishes the same run has swept the draft
            except OSError as e:
                if e.errno not in _NO_LINKS:
                    raise
                return self._create_without_links(target, data)
            finally:
                path.unlink(missing_ok=True)
            self.sync([name])
            return True

    def _create_without_links(self, target: Path, data: bytes) -> bool:
        try:
            stream = target.open("xb")
        except FileExistsError:
            return False
        with stream:
            stream.write(data)
            self.seal(stream)
        return True

    def sync(self, names: Iterable[str]) -> None:
        """Makes the presence of files durable."""
        if os.name != "posix":
            return
        for parent in {os.path.dirname(self.path(name)) for name in names}:  # noqa: PTH120
            with contextlib.suppress(FileNotFoundError):  # what is gone needs no durability; whoever needs the file will say so
                handle = os.open(parent, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)

    def read(self, name: str) -> bytes:
        return Path(self.path(name)).read_bytes()

    def exists(self, name: str) -> bool:
        return Path(self.path(name)).exists()

    def names(self, name: str) -> list[str]:
        """The names of the files that lie directly in a folder; none when there is no such folder."""
        try:
            with os.scandir(self.path(name)) as found:
                return sorted(f"{name}/{e.name}" for e in found if e.is_file())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def stamp(self, name: str) -> tuple[int, int] | None:
        """What tells a file from another that is put in its place later."""
        try:
            told = Path(self.path(name)).stat()
        except FileNotFoundError:
            return None
        return told.st_ino, told.st_mtime_ns

    def older(self, name: str, secs: float) -> list[str]:
        """The files in the folders of a folder that have not changed for so long."""
        before = time.time() - secs
        root = Path(self.path(name))
        found = []
        for path in sorted(root.glob("*/*")):
            with contextlib.suppress(FileNotFoundError):  # others sweep too
                if path.is_file() and path.stat().st_mtime < before:
                    found.append(f"{name}/{path.relative_to(root).as_posix()}")
        return found

    def data_files(self, below: str = "") -> Iterator[tuple[str, int]]:
        """Names and sizes of the visible files of the table: at its top and in Hive partitions."""
        try:
            with os.scandir(self.path(below) if below else self.root) as found:
                entries = sorted(found, key=lambda e: e.name)
        except FileNotFoundError:
            return
        for e in entries:
            if e.is_dir() and is_hive(e.name):
                yield from self.data_files(f"{below}{e.name}/")
            elif e.is_file() and not e.name.startswith((".", "_")):
                yield f"{below}{e.name}", e.stat().st_size

    def move(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Renames files durably; returns the pairs of those that are not there, perhaps because another process was faster."""
        gone = []
        for name, to in pairs:
            source, target = Path(self.path(name)), Path(self.path(to))
            while True:
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    source.rename(target)
                except FileNotFoundError:
                    if source.exists():
                        continue  # an emptied partition folder was removed before the file came
                    gone.append((name, to))
                break
        self.sync(to for name, to in pairs if (name, to) not in gone)
        return gone

    def remove(self, names: Iterable[str]) -> None:
        """Removes files, and partition folders that become empty; one that is gone already is no error."""
        for name in names:
            Path(self.path(name)).unlink(missing_ok=True)
            self.prune(name.rpartition("/")[0])

    def prune(self, name: str) -> None:
        """Removes a folder and those above it, inside the table, as far as they are empty."""
        while name:
            with contextlib.suppress(FileNotFoundError):
                try:
                    Path(self.path(name)).rmdir()
                except OSError as e:
                    if e.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        return
                    raise
            name = name.rpartition("/")[0]

    def trouble(self) -> str | None:
        """Says what forbids writing here; None when nothing does. Changes nothing."""
        there = Path(self.root).absolute()
        try:
            while not there.exists() and there != there.parent:
                there = there.parent
            if not there.is_dir():
                return f"{there} is a file, not a folder"
        except PermissionError as e:
            return f"no permission to reach {e.filename}"
        if not os.access(there, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids):
            return f"no permission to write in {there}"
        return None


class GcsFolder:
    """Reaches a folder of Cloud Storage, where a name is created once, whoever else creates it."""

    def __init__(self, path: str):
        gcs.parted(path)
        self.root = path.rstrip("/")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def open(self, name: str) -> BinaryIO:
        return gcs.open_for_writing(self.path(name))

    def seal(self, stream: BinaryIO) -> None:
        stream.close()

    def create(self, name: str, data: bytes, draft: str) -> bool:
        return gcs.create(self.path(name), data)

    def sync(self, names: Iterable[str]) -> None:
        pass

    def read(self, name: str) -> bytes:
        return gcs.read(self.path(name))

    def exists(self, name: str) -> bool:
        return gcs.find(self.path(name)) is not None

    def names(self, name: str) -> list[str]:
        return [self._name(found) for found in gcs.below(f"{self.path(name)}/", deep=False)]

    def stamp(self, name: str) -> int | None:
        found = gcs.find(self.path(name))
        return found.generation if found else None

    def older(self, name: str, secs: float) -> list[str]:
        before = time.time() - secs
        return [self._name(found) for found in gcs.below(f"{self.path(name)}/") if found.modified < before]

    def data_files(self) -> Iterator[tuple[str, int]]:
        for found in gcs.below(f"{self.root}/"):
            *folders, last = self._name(found).split("/")
            if last and all(map(is_hive, folders)) and not last.startswith((".", "_")):
                yield self._name(found), found.size

    def move(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        moved = gcs.each(lambda pair: gcs.move(self.path(pair[0]), self.path(pair[1])), pairs)
        return [pair for pair, done in zip(pairs, moved, strict=True) if not done]

    def remove(self, names: Iterable[str]) -> None:
        gcs.each(gcs.remove, map(self.path, names))

    def prune(self, name: str) -> None:
        pass

    def trouble(self) -> str | None:
        return gcs.trouble(self.root, writing=True)

    def _name(self, found: gcs.Object) -> str:
        return found.path[len(self.root) + 1 :]


class RemoteFolder:
    """Reaches a folder through Beam's FileSystems."""

    def __init__(self, path: str):
        self.root = path.rstrip("/")

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def open(self, name: str) -> BinaryIO:
        return FileSystems.create(self.path(name), compression_type=CompressionTypes.UNCOMPRESSED)

    def seal(self, stream: BinaryIO) -> None:
        stream.close()

    def create(self, name: str, data: bytes, draft: str) -> bool:
        """Creates an object unless it is there. Not exclusive: Beam's FileSystems know no precondition."""
        if self.exists(name):
            return False
        with self.open(name) as stream:
            stream.write(data)
        return True

    def sync(self, names: Iterable[str]) -> None:
        pass

    def read(self, name: str) -> bytes:
        with FileSystems.open(self.path(name), compression_type=CompressionTypes.UNCOMPRESSED) as stream:
            return stream.read()

    def exists(self, name: str) -> bool:
        return FileSystems.exists(self.path(name))

    def names(self, name: str) -> list[str]:
        return sorted(found for found, _ in self._match(f"{name}/*"))

    def stamp(self, name: str) -> tuple[int, float] | None:
        found = FileSystems.match([self.path(name)])[0].metadata_list
        return (found[0].size_in_bytes, found[0].last_updated_in_seconds) if found else None

    def older(self, name: str, secs: float) -> list[str]:
        found = FileSystems.match([self.path(f"{name}/*/*")])[0].metadata_list
        before = time.time() - secs
        return sorted(m.path[len(self.root) + 1 :] for m in found if 0 < m.last_updated_in_seconds < before)

    def data_files(self) -> Iterator[tuple[str, int]]:
        for name, size in self._match("**"):
            *folders, last = name.split("/")
            if all(map(is_hive, folders)) and not last.startswith((".", "_")):
                yield name, size

    def _match(self, pattern: str) -> list[tuple[str, int]]:
        found = FileSystems.match([self.path(pattern)])[0].metadata_list
        return [(m.path[len(self.root) + 1 :], m.size_in_bytes) for m in found]

    def move(self, pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
        for parent in {self.path(to).rpartition("/")[0] for _, to in pairs}:
            with contextlib.suppress(OSError):  # there already, or a store without folders
                FileSystems.mkdirs(parent)
        try:
            FileSystems.rename([self.path(name) for name, _ in pairs], [self.path(to) for _, to in pairs])
        except BeamIOError:
            if any(self.exists(name) for name, _ in pairs):
                raise
            return pairs
        return []

    def remove(self, names: Iterable[str]) -> None:
        present = [self.path(name) for name in names if self.exists(name)]
        if not present:
            return
        try:
            FileSystems.delete(present)
        except BeamIOError:
            if any(FileSystems.exists(path) for path in present):
                raise

    def prune(self, name: str) -> None:
        pass

    def trouble(self) -> str | None:
        try:
            FileSystems.match([self.path("_manifest/*")])
        except Exception as e:  # each client raises errors of its own
            return f"{self.root} cannot be reached: {e}"
        return None


def draft_in(folder: str) -> str:
    """A new name for a file that is being written."""
    return f"{folder}/{uuid.uuid4().hex}.draft"


Folder = LocalFolder | GcsFolder | RemoteFolder
