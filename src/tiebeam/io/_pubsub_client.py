"""Clients of Pub/Sub: how the service is reached, errors in plain words, and what topics and subscriptions say of themselves.

Built on google-cloud-pubsub, and there on the calls of the service itself: its high-level client handles messages one by one.
https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tiebeam.errors import ConfigError, Problem, TransientError
from tiebeam.options import Secret

ANSWER_SECS = 15.0
EMULATOR = "PUBSUB_EMULATOR_HOST"
SUBSCRIPTION = re.compile(r"projects/[^/]+/subscriptions/[A-Za-z][\w.~+%-]{2,254}")
TOPIC = re.compile(r"projects/[^/]+/topics/[A-Za-z][\w.~+%-]{2,254}")
_FOR_NOW = {
    "Aborted", "DeadlineExceeded", "InternalServerError", "ResourceExhausted", "RetryError", "ServiceUnavailable", "TooManyRequests",
    "Unknown",
}  # fmt: skip


@dataclass(frozen=True)
class Connection:
    """How the service is reached: by default Google's, with its default credentials; an emulator's address in clear, without any."""

    endpoint: str | None = None
    credentials: Secret | None = None

    def problems(self) -> Iterator[Problem]:
        """What is wrong with the settings themselves."""
        if self.endpoint is not None and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[\w.-]+):\d{1,5}", self.endpoint):
            yield Problem(f"{self.endpoint!r} is no address", "pubsub_endpoint", "HOST:PORT, such as localhost:8085")

    @property
    def in_clear(self) -> bool:
        """Whether this is an emulator: Google's own endpoints are reached by TLS."""
        return self.endpoint is not None and not self.endpoint.partition(":")[0].endswith(".googleapis.com")

    def subscriber(self) -> Any:
        import warnings

        from google.pubsub_v1.services.subscriber import SubscriberClient
        from google.pubsub_v1.services.subscriber.transports import SubscriberGrpcTransport

        warnings.filterwarnings("ignore", "The return_immediately flag")  # a call that does not wait tells whether anybody answers
        return SubscriberClient(transport=SubscriberGrpcTransport(**self._transport(SubscriberGrpcTransport)))

    def publisher(self) -> Any:
        from google.pubsub_v1.services.publisher import PublisherClient
        from google.pubsub_v1.services.publisher.transports import PublisherGrpcTransport

        return PublisherClient(transport=PublisherGrpcTransport(**self._transport(PublisherGrpcTransport)))

    def schemas(self) -> Any:
        from google.pubsub_v1.services.schema_service import SchemaServiceClient
        from google.pubsub_v1.services.schema_service.transports import SchemaServiceGrpcTransport

        return SchemaServiceClient(transport=SchemaServiceGrpcTransport(**self._transport(SchemaServiceGrpcTransport)))

    def _transport(self, kind: Any) -> dict[str, Any]:
        import grpc

        room = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
        if self.in_clear:
            return {"channel": grpc.insecure_channel(self.endpoint, options=[*room, ("grpc.max_reconnect_backoff_ms", 2_000)])}
        credentials = self._credentials()
        host = self.endpoint or "pubsub.googleapis.com:443"
        return {"channel": kind.create_channel(host, credentials=credentials, options=room), "host": host}

    def _credentials(self) -> Any:
        from google.oauth2 import service_account

        if self.credentials is None:
            return None
        try:
            told = json.loads(self.credentials.resolve())
            return service_account.Credentials.from_service_account_info(told, scopes=["https://www.googleapis.com/auth/pubsub"])
        except (ValueError, KeyError) as e:
            what = f"{self.credentials.reference} is no key of a service account: {type(e).__name__}"
            raise ConfigError(Problem(what, "credentials", "the JSON file that Google gave, as file:PATH or env:NAME")) from None


def needed() -> None:
    """Raises ConfigError where the client is not installed."""
    try:
        import google.pubsub_v1  # noqa: F401
    except ImportError as e:
        raise ConfigError(Problem("Pub/Sub needs google-cloud-pubsub", "pubsub", "pip install 'tiebeam[gcp]'")) from e


def is_for_now(error: Exception) -> bool:
    """Whether the same call may succeed later."""
    return type(error).__name__ in _FOR_NOW


def told(error: Exception, what: str, where: str) -> ConfigError | TransientError:
    """An error of the service in plain words: one to mend, or one to try again."""
    said = str(getattr(error, "message", None) or error).strip()[:300]
    match type(error).__name__:
        case "NotFound":
            return ConfigError(Problem(f"{what} is not there: {said}", where, "create it first, or check its name and project"))
        case "PermissionDenied" | "Forbidden" | "Unauthenticated" | "Unauthorized":
            return ConfigError(Problem(f"no right to use {what}: {said}", where, "grant the role Pub/Sub Subscriber, Publisher or Viewer"))
        case "DefaultCredentialsError" | "RefreshError":
            fix = "credentials=file:PATH of a service account's key, or gcloud auth application-default login"
            return ConfigError(Problem(f"there are no credentials: {said}", "credentials", fix))
        case "InvalidArgument" | "FailedPrecondition":
            return ConfigError(Problem(f"{what} is refused: {said}", where))
    return TransientError(f"Pub/Sub does not answer for {what}: {said}")


def ask(what: str, where: str, call: Any, *, unless: str = "", **named: Any) -> Any:
    """Calls the service before anything moves: every trouble is a ConfigError, but one that is expected, and silence ends soon."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    try:
        return call(timeout=ANSWER_SECS, retry=None, **named)
    except (GoogleAPIError, GoogleAuthError) as e:
        if type(e).__name__ == unless:
            return None
        trouble = told(e, what, where)
        if isinstance(trouble, ConfigError):
            raise trouble from None
        raise ConfigError(Problem(str(trouble), where, "check the address, and that the service can be reached from here")) from None


@dataclass(frozen=True)
class TopicSchema:
    """The schema that the service holds messages of a topic to; `binary` says whether they are Avro's binary form, or JSON."""

    kind: str
    definition: str
    binary: bool


def schema_of(connection: Connection, topic: str) -> TopicSchema | None:
    """The schema of a topic; None where it has none, or may not be seen."""
    from google.api_core.exceptions import GoogleAPIError

    try:
        settings = connection.publisher().get_topic(topic=topic, timeout=ANSWER_SECS, retry=None).schema_settings
        if not settings.schema or settings.schema == "_deleted-schema_":
            return None
        found = connection.schemas().get_schema(request={"name": settings.schema, "view": "FULL"}, timeout=ANSWER_SECS, retry=None)
    except GoogleAPIError:
        return None
    return TopicSchema(found.type_.name, found.definition, settings.encoding.name == "BINARY")
