"""Google Cloud Storage: the few operations on objects that files and folders are made of, with preconditions.

Built on google-cloud-storage (install `tiebeam[gcp]`), since Beam's FileSystems know no preconditions. Credentials are Google's default
ones, those that Beam's options impersonate, or none; `STORAGE_EMULATOR_HOST` names another server, which is used without credentials.
https://cloud.google.com/storage/docs/request-preconditions
"""

from __future__ import annotations

import contextlib
import errno
import io
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import GoogleCloudOptions

from tiebeam.errors import ConfigError, Problem

SCHEME = "gs://"
CHUNK_BYTES = 4 << 20
"""What is sent at once; each file that is being written holds as much."""
BUFFER_BYTES = 8 << 20
SIDE_BY_SIDE = 16
PATIENCE_SECS = 60.0
PING_SECS = 10.0

_OURS = "tiebeam-writer"
_lock = threading.Lock()
_clients: list[Any] = []


@dataclass(frozen=True)
class Object:
    """An object: its path, its size, when it was made (Unix seconds), and which of those of its name it is."""

    path: str
    size: int
    modified: float
    generation: int


def is_gcs(path: str) -> bool:
    """Whether a path is one of Cloud Storage."""
    return path.startswith(SCHEME)


def parted(path: str) -> tuple[str, str]:
    """The bucket of a path, and the name in it, which may be empty."""
    bucket, _, name = path.removeprefix(SCHEME).partition("/")
    if not bucket:
        raise ConfigError(Problem("names no bucket", path, "write gs://BUCKET/FOLDER"))
    return bucket, name


# ---- objects


def read(path: str) -> bytes:
    """The content of an object."""
    with _plain(path):
        return _blob(path).download_as_bytes(raw_download=True, retry=_retry())


def find(path: str) -> Object | None:
    """What is at a path; None when nothing is."""
    with _plain(path):
        bucket, name = parted(path)
        blob = client().bucket(bucket).get_blob(name, retry=_retry()) if name else None
        return None if blob is None else _object(bucket, blob)


def open_for_reading(path: str) -> BinaryIO:
    """Opens the object that is at a path now: one that is put in its place later is not mixed into it."""
    found = find(path)
    if found is None:
        raise FileNotFoundError(errno.ENOENT, "there is no such object", path)
    return cast(BinaryIO, io.BufferedReader(_Reading(found), min(BUFFER_BYTES, max(found.size, 1))))


def open_for_writing(path: str) -> BinaryIO:
    """Opens a new object for writing: it is there, whole, once the stream is closed, and FileExistsError is raised where one was."""
    return cast(BinaryIO, _Writing(path))


def create(path: str, data: bytes) -> bool:
    """Creates an object unless one is there: of many who do so at once, one is told that it did."""
    with _plain(path):
        return _create(path, data)


def put(path: str, data: bytes) -> None:
    """Makes an object, or replaces the one that is there."""
    with _plain(path):
        _blob(path).upload_from_string(data, content_type="application/octet-stream", retry=_retry(), checksum="crc32c")


def remove(path: str) -> None:
    """Removes an object; one that is gone already is no error."""
    with contextlib.suppress(FileNotFoundError), _plain(path):
        _blob(path).delete(retry=_retry())


def move(source: str, target: str) -> bool:
    """Gives an object another name, unless there is one of that name already; False when there is nothing to move."""
    from google.api_core.exceptions import NotFound, PreconditionFailed

    copy, token = _blob(target), None
    with _plain(source):
        try:
            while True:  # a large object of another class or place is copied in several calls
                token, *_ = copy.rewrite(_blob(source), token=token, if_generation_match=0, retry=_retry())
                if token is None:
                    break
        except PreconditionFailed:
            pass  # moved by another process, or by a request whose answer was lost
        except NotFound:
            return False
    remove(source)
    return True


def below(prefix: str, *, deep: bool = True) -> Iterator[Object]:
    """The objects whose paths begin so, in order; `deep` says whether also those with a further `/`."""
    with _plain(prefix):
        bucket, name = parted(prefix)
        fields = "items(name,size,updated,generation),nextPageToken"
        found = client().list_blobs(bucket, prefix=name or None, delimiter=None if deep else "/", fields=fields, retry=_retry())
        for blob in found:
            yield _object(bucket, blob)


def each(do: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
    """Does something for each of many, side by side."""
    items = list(items)
    if len(items) < 2:
        return [do(item) for item in items]
    with ThreadPoolExecutor(min(SIDE_BY_SIDE, len(items))) as pool:
        return list(pool.map(do, items))


def trouble(path: str, *, writing: bool) -> str | None:
    """Says what forbids reading or writing below a path; None when nothing does. Changes nothing."""
    from google.api_core.exceptions import NotFound

    bucket, name = parted(path)
    retry = _retry(PING_SECS)
    probe = client().bucket(bucket).blob(f"{name.rstrip('/')}/_staging/{uuid.uuid4().hex}".lstrip("/"))
    try:
        what = f"cannot be listed: no right to list the bucket {bucket}"
        with _plain(path):
            list(client().list_blobs(bucket, prefix=name or None, max_results=1, retry=retry))
        if writing:
            what = f"cannot be written: no right to remove objects in {bucket}, without which nothing can be published"
            with _plain(path), contextlib.suppress(NotFound):
                probe.delete(retry=retry)
            what = f"cannot be written: no right to create objects in {bucket}"
            with _plain(path):
                probe.create_resumable_upload_session(retry=retry)  # leaves nothing: no byte is sent
    except FileNotFoundError:
        return f"there is no bucket {bucket}"
    except PermissionError as e:
        return f"{what} ({e.strerror})"
    except OSError as e:
        return f"Cloud Storage cannot be reached: {e.strerror or e}"
    return None


class _Reading(io.RawIOBase):
    """Reads one generation of an object, range by range."""

    def __init__(self, of: Object):
        bucket, name = parted(of.path)
        self.path, self.size, self.at = of.path, of.size, 0
        self.blob = client().bucket(bucket).blob(name, generation=of.generation)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.size}[whence])
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self.size - self.at)
        if wanted <= 0:
            return 0
        with _plain(self.path):
            range_ = dict(start=self.at, end=self.at + wanted - 1)
            data = self.blob.download_as_bytes(**range_, raw_download=True, checksum=None, retry=_retry())
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


class _Writing(io.RawIOBase):
    """Sends what is small when it is closed, in one request, and what is larger in chunks, of which nothing is seen until the last."""

    def __init__(self, path: str):
        self.path = path
        self.held = bytearray()
        self.upload: Any = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        if self.upload is None and len(self.held) + len(view) <= CHUNK_BYTES:
            self.held += view
            return len(view)
        with _plain(self.path):
            if self.upload is None:
                blob = _blob(self.path)
                blob.metadata = {_OURS: uuid.uuid4().hex}
                self.upload = blob.open(
                    "wb", chunk_size=CHUNK_BYTES, ignore_flush=True, if_generation_match=0, retry=_retry(), checksum="crc32c"
                )
                self.upload.write(bytes(self.held))
                self.held.clear()
            self.upload.write(view)
        return len(view)

    def close(self) -> None:
        if self.closed:
            return
        try:
            with _plain(self.path):
                if self.upload is not None:
                    self.upload.close()
                elif not _create(self.path, bytes(self.held)):
                    raise FileExistsError(errno.EEXIST, "there is such an object already", self.path)
        finally:
            super().close()

    def terminate(self) -> None:
        """Gives the object up: it will not be there."""
        if self.upload is not None:
            with contextlib.suppress(Exception):
                self.upload.terminate()
        super().close()

    def __del__(self) -> None:
        """What is abandoned is given up; a stream of Python would be closed, and half an object be there."""


# ---- the client


def client() -> Any:
    """Google's client, one for this process."""
    with _lock:
        if not _clients:
            _clients.append(_new_client())
        return _clients[0]


def _new_client() -> Any:
    try:
        from google.auth.exceptions import DefaultCredentialsError
        from google.cloud.storage import Client
    except ImportError as e:
        raise ConfigError(Problem("Cloud Storage needs google-cloud-storage", "gs://", "pip install 'tiebeam[gcp]'")) from e
    options = FileSystems._pipeline_options
    if options is not None and options.view_as(GoogleCloudOptions).impersonate_service_account:
        from apache_beam.io.gcp.gcsio import create_storage_client

        return create_storage_client(options)
    try:
        return Client(project="none")
    except DefaultCredentialsError:  # what is public can be read nevertheless
        return Client.create_anonymous_client()


def forget_client() -> None:
    """Makes the next call look for the server and the credentials anew."""
    with _lock:
        _clients.clear()


def _blob(path: str) -> Any:
    bucket, name = parted(path)
    return client().bucket(bucket).blob(name)


def _object(bucket: str, blob: Any) -> Object:
    return Object(f"{SCHEME}{bucket}/{blob.name}", blob.size or 0, blob.updated.timestamp(), blob.generation or 0)


def _create(path: str, data: bytes) -> bool:
    from google.api_core.exceptions import PreconditionFailed

    blob = _blob(path)
    blob.metadata = {_OURS: uuid.uuid4().hex}
    try:
        blob.upload_from_string(data, "application/octet-stream", if_generation_match=0, retry=_retry(), checksum="crc32c")
    except PreconditionFailed:
        there = blob.bucket.get_blob(blob.name, retry=_retry())
        return there is not None and (there.metadata or {}).get(_OURS) == blob.metadata[_OURS]  # ours, and only the answer was lost
    return True


def _retry(secs: float = PATIENCE_SECS) -> Any:
    from google.cloud.storage.retry import DEFAULT_RETRY

    return DEFAULT_RETRY.with_timeout(secs)


@contextlib.contextmanager
def _plain(path: str) -> Iterator[None]:
    """Tells Google's errors as those of files."""
    from google.api_core.exceptions import GoogleAPIError, RetryError
    from google.auth.exceptions import GoogleAuthError
    from google.cloud.storage.exceptions import InvalidResponse

    try:
        yield
    except RetryError as e:
        raise OSError(errno.EAGAIN, f"no answer in time: {e.cause or e}"[:500], path) from e
    except (GoogleAPIError, InvalidResponse) as e:
        code = e.response.status_code if isinstance(e, InvalidResponse) else getattr(e, "code", None)
        said = str(getattr(e, "message", None) or e)[:500]
        if code == 404:
            raise FileNotFoundError(errno.ENOENT, f"not there: {said}", path) from e
        if code in (401, 403):
            raise PermissionError(errno.EACCES, said, path) from e
        if code == 412:
            raise FileExistsError(errno.EEXIST, "there is such an object already", path) from e
        raise OSError(errno.EIO, said, path) from e
    except GoogleAuthError as e:
        raise PermissionError(errno.EACCES, f"the credentials do not hold: {e}"[:500], path) from e
