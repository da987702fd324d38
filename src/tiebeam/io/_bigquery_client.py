"""Clients of BigQuery: where its services are, who we are, and what their errors mean.

Built on google-cloud-bigquery (REST) and google-cloud-bigquery-storage (gRPC). Their own retries are off: they wait ten minutes in
silence. Here every call has a deadline, is tried again with growing, jittered pauses for `patience_secs`, and then fails with a reason.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.options import Secret

T = TypeVar("T")

REST_ENV, STORAGE_ENV = "BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"
ANSWER_SECS = 60.0
FIRST_PAUSE_SECS, LONGEST_PAUSE_SECS = 0.05, 8.0
MESSAGE_BYTES = 128 << 20

TRANSIENT = {"ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "INTERNAL", "RESOURCE_EXHAUSTED", "UNAVAILABLE", "UNKNOWN"}
"""The gRPC codes of what may go well when it is tried again."""
_TRANSIENT_HTTP = {408, 429, 500, 502, 503, 504}
_TRANSIENT_REASONS = {"backendError", "internalError", "jobBackendError", "jobInternalError", "jobRateLimitExceeded", "rateLimitExceeded"}


@dataclass(frozen=True)
class Connection:
    """How BigQuery is reached; secrets are references, read where a client is made."""

    project: str | None = None
    endpoint: str | None = None
    storage_endpoint: str | None = None
    credentials: Secret | None = None
    location: str | None = None
    patience_secs: float = 60.0
    answer_secs: float = ANSWER_SECS

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the settings themselves."""
        if self.endpoint is not None and not re.fullmatch(r"https?://[^/\s]+/?", self.endpoint):
            yield Problem(f"{self.endpoint!r} is no address of a service", "bigquery_endpoint", "http://HOST:PORT or https://HOST")
        if self.storage_endpoint is not None and not re.fullmatch(r"(https?://)?[^/\s]+:\d+", self.storage_endpoint):
            yield Problem(f"{self.storage_endpoint!r} is no address of a service", "bigquery_storage_endpoint", "HOST:PORT")
        if self.project is not None and not re.fullmatch(r"[a-z0-9.:-]+", self.project):
            yield Problem(f"{self.project!r} is no project", "project", "its id, such as my-project")

    def open(self) -> Clients:
        """The clients of this process for this connection."""
        return _opened(self)


@functools.cache
def _opened(connection: Connection) -> Clients:
    return Clients(connection)


class Clients:
    """The REST client, and the gRPC clients for reading and writing, each made when it is needed first."""

    def __init__(self, connection: Connection):
        self.connection = connection
        self.endpoint = connection.endpoint or _told(REST_ENV)
        self.storage_endpoint = connection.storage_endpoint or _told(STORAGE_ENV)

    @functools.cached_property
    def rest(self) -> Any:
        from google.api_core.client_options import ClientOptions
        from google.cloud import bigquery

        credentials, project = self._identity
        options = ClientOptions(api_endpoint=self.endpoint) if self.endpoint else None
        return bigquery.Client(project=project, credentials=credentials, location=self.connection.location, client_options=options)

    @functools.cached_property
    def writing(self) -> Any:
        from google.cloud.bigquery_storage_v1.services.big_query_write import BigQueryWriteClient, transports

        return self._storage(BigQueryWriteClient, transports.BigQueryWriteGrpcTransport)

    @functools.cached_property
    def reading(self) -> Any:
        from google.cloud.bigquery_storage_v1.services.big_query_read import BigQueryReadClient, transports

        return self._storage(BigQueryReadClient, transports.BigQueryReadGrpcTransport)

    def _storage(self, client: Any, transport: Any) -> Any:
        import grpc
        from google.api_core.client_options import ClientOptions

        sizes = [("grpc.max_send_message_length", MESSAGE_BYTES), ("grpc.max_receive_message_length", MESSAGE_BYTES)]
        plain = (self.endpoint or "").startswith("http://") or (self.storage_endpoint or "").startswith("http://")
        if self.storage_endpoint and plain:
            channel = grpc.insecure_channel(self.storage_endpoint.removeprefix("http://"), options=sizes)
            return client(transport=transport(channel=channel))
        address = self.storage_endpoint and self.storage_endpoint.removeprefix("https://")
        return client(credentials=self._identity[0], client_options=ClientOptions(api_endpoint=address) if address else None)

    @property
    def project(self) -> str:
        """The project that pays, and that tables without one are in."""
        return self._identity[1]

    @functools.cached_property
    def _identity(self) -> tuple[Any, str]:
        import google.auth
        from google.auth.credentials import AnonymousCredentials

        named = self.connection.project or _told("GOOGLE_CLOUD_PROJECT")
        fix = "project=ID, and credentials=file:KEY.json or `gcloud auth application-default login`"
        if (self.endpoint or "").startswith("http://"):
            return AnonymousCredentials(), named or "lab"
        try:
            if self.connection.credentials is not None:
                told = json.loads(self.connection.credentials.resolve())
                credentials, own = google.auth.load_credentials_from_dict(told, scopes=["https://www.googleapis.com/auth/cloud-platform"])
            else:
                credentials, own = google.auth.default(scopes=["https://www.googleapis.com/auth/cloud-platform"])
        except (google.auth.exceptions.GoogleAuthError, ValueError) as e:
            raise ConfigError(Problem(f"there are no credentials for BigQuery: {e}", "credentials", fix)) from None
        if not (named or own):
            raise ConfigError(Problem("no project is named", "project", fix))
        return credentials, named or own

    def again(self, what: str, call: Callable[[], T], secs: float | None = None) -> T:
        """Calls until it goes well; raises TransientError once patience is at its end, and ConfigError for what no patience mends."""
        pauses = Pauses(self.connection.patience_secs if secs is None else secs)
        while True:
            try:
                return call()
            except Exception as e:
                if not is_transient(e):
                    raise told(e, what) from e
                pauses.wait(what, e)


class Pauses:
    """Growing pauses between attempts, each a random share of its length, so that many workers do not come back at once."""

    def __init__(self, patience_secs: float):
        self.until = time.monotonic() + patience_secs
        self.next = FIRST_PAUSE_SECS

    def wait(self, what: str, cause: Any) -> None:
        """Pauses; raises TransientError once patience is at its end."""
        pause = random.uniform(self.next / 2, self.next)
        if time.monotonic() + pause > self.until:
            raise TransientError(f"{what}: {message_of(cause)}") from (cause if isinstance(cause, BaseException) else None)
        time.sleep(pause)
        self.next = min(LONGEST_PAUSE_SECS, self.next * 2)


def is_transient(error: Exception) -> bool:
    """Whether what failed may go well when it is tried again."""
    import requests.exceptions
    from google.api_core import exceptions
    from google.auth.exceptions import TransportError

    if isinstance(error, exceptions.GoogleAPICallError):
        if error.grpc_status_code is not None:
            return error.grpc_status_code.name in TRANSIENT
        reasons = {e.get("reason") for e in error.errors if isinstance(e, dict)}
        return error.code in _TRANSIENT_HTTP or bool(reasons & _TRANSIENT_REASONS)
    return isinstance(error, (requests.exceptions.RequestException, ConnectionError, exceptions.RetryError, TransportError, TransientError))


def told(error: Exception, what: str) -> Exception:
    """An error of BigQuery as one of ours; others as they are."""
    from google.api_core import exceptions

    if not isinstance(error, exceptions.GoogleAPICallError):
        return error
    if isinstance(error, (exceptions.Unauthorized, exceptions.Forbidden)):
        fix = "roles/bigquery.dataEditor on the dataset and roles/bigquery.jobUser on the project are needed to write"
    elif isinstance(error, exceptions.NotFound):
        fix = "create it, or correct its name or its location"
    else:
        fix = "see the reason; nothing was changed by this call"
    return ConfigError(Problem(f"BigQuery refuses: {message_of(error)}", what, fix))


def message_of(error: Any) -> str:
    """The first line of what a service said, without addresses."""
    text = getattr(error, "message", None) or str(error)
    return re.sub(r"(POST|GET|PATCH|PUT|DELETE) https?://\S+: ", "", str(text)).strip().splitlines()[0][:500]


def is_(error: Exception, code: int) -> bool:
    """Whether the REST service answered with a code, 404 for instance."""
    return getattr(error, "code", None) == code


@dataclass(frozen=True)
class TableName:
    """A table by its full name."""

    project: str
    dataset: str
    table: str

    @staticmethod
    def of(name: str, project: str) -> TableName:
        """Reads `dataset.table` or `project.dataset.table`."""
        *before, dataset, table = name.rsplit(".", 2)
        return TableName(before[0] if before else project, dataset, table)

    @property
    def path(self) -> str:
        """As the Storage API calls it."""
        return f"projects/{self.project}/datasets/{self.dataset}/tables/{self.table}"

    def __str__(self) -> str:
        return f"{self.project}.{self.dataset}.{self.table}"

    @property
    def sql(self) -> str:
        return f"`{self}`"

    def beside(self, table: str) -> TableName:
        """Another table of the dataset."""
        return TableName(self.project, self.dataset, table)


def digest(*parts: str) -> str:
    """A short name that is the same for the same parts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _told(variable: str) -> str | None:
    with contextlib.suppress(ConfigError):
        return Secret(f"env:{variable}").resolve() or None
    return None
