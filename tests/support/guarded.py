"""A broker of Kafka behind every kind of door, and what a client needs to come in: users, certificates, tokens and rights.

Certificates and tokens are made here, so that nothing is fetched and nothing expires.
"""

from __future__ import annotations

import base64
import datetime
import functools
import ipaddress
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
    ScramCredentialInfo,
    ScramMechanism,
    UserScramCredentialUpsertion,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

LISTENERS = {"SASL": "SASL_PLAINTEXT", "SASLTLS": "SASL_SSL", "TLS": "SSL", "MUTUAL": "SSL"}
PASSWORD = "correct horse, battery"
ISSUER, AUDIENCE = "https://tokens.test", "kafka"


@dataclass
class Authority:
    """Signs certificates; its own lies in `file`."""

    folder: Path
    name: str

    def __post_init__(self):
        self.key = rsa.generate_private_key(65537, 2048)
        self.file = self._written(f"{self.name}.pem", _pem(self._certificate(self.name, self.key, root=True)))

    def issue(self, name: str, password: bytes | None = None) -> tuple[str, str]:
        """The files of a certificate and of its key."""
        key = rsa.generate_private_key(65537, 2048)
        sealed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
        secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed)
        certificate = self._certificate(name, key)
        return self._written(f"{name}.pem", _pem(certificate)), self._written(f"{name}.key", secret)

    def _certificate(self, name: str, key: rsa.RSAPrivateKey, root: bool = False) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        building = (
            x509.CertificateBuilder()
            .subject_name(_named(name))
            .issuer_name(_named(self.name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=root, path_length=None), critical=True)
        )
        if not root:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            building = building.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return building.sign(self.key, hashes.SHA256())

    def _written(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(data)
        return str(self.folder / name)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class Tokens:
    """Gives signed tokens to clients that know the secret; `keys` is the file by which a broker knows them."""

    def __init__(self, folder: Path):
        self.key = rsa.generate_private_key(65537, 2048)
        numbers = self.key.public_key().public_numbers()
        known = {"kty": "RSA", "kid": "one", "alg": "RS256", "use": "sig", "n": _number(numbers.n), "e": _number(numbers.e)}
        self.keys = folder / "keys.json"
        self.keys.write_text(json.dumps({"keys": [known]}))
        self.url = ""

    def token(self, user: str) -> str:
        now = int(time.time())
        told = {"iss": ISSUER, "aud": AUDIENCE, "sub": user, "iat": now, "exp": now + 600}
        signed = f"{_base64(json.dumps({'alg': 'RS256', 'kid': 'one'}).encode())}.{_base64(json.dumps(told).encode())}"
        return f"{signed}.{_base64(self.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"

    def answer(self, authorization: str) -> tuple[int, dict[str, Any]]:
        user, _, secret = base64.b64decode(authorization.removeprefix("Basic ")).decode().partition(":")
        if secret not in (PASSWORD, quote(PASSWORD, safe="")):
            return 401, {"error": "invalid_client", "error_description": "the secret is wrong"}
        return 200, {"access_token": self.token(user), "token_type": "Bearer", "expires_in": 600}

    @contextmanager
    def served(self) -> Iterator[None]:
        tokens = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, told = tokens.answer(self.headers.get("Authorization") or "")
                data = json.dumps(told).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{server.server_address[1]}/token"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()
            server.server_close()


def _number(n: int) -> str:
    return _base64(n.to_bytes((n.bit_length() + 7) // 8, "big"))


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@dataclass
class Guarded:
    """The broker, and the keys to its doors. Who comes in without security may do everything, all others what they were granted."""

    cluster: Any
    authority: Authority
    tokens: Tokens

    @functools.cached_property
    def admin(self) -> AdminClient:
        """One for all: what it promised is void when it is gone."""
        return AdminClient({"bootstrap.servers": self.cluster.servers, "log_level": 0})

    def settings(self, way: str, user: str = "alice") -> dict[str, Any]:
        """The options of a connector that come in by a way: PLAIN, SCRAM-SHA-256, SCRAM-SHA-512, OAUTHBEARER, TLS, MUTUAL."""
        listeners = self.cluster.listeners
        if way in ("TLS", "MUTUAL"):
            return {"servers": listeners[way], "security": "ssl", "ca_file": self.authority.file}
        told = {"servers": listeners["SASL"], "security": "sasl_plaintext", "sasl": way, "username": user}
        return told | ({"oauth_url": self.tokens.url} if way == "OAUTHBEARER" else {})

    def add_user(self, name: str) -> None:
        """Makes a user of SCRAM."""
        for mechanism in (ScramMechanism.SCRAM_SHA_256, ScramMechanism.SCRAM_SHA_512):
            made = UserScramCredentialUpsertion(name, ScramCredentialInfo(mechanism, 4096), PASSWORD.encode())
            self.admin.alter_user_scram_credentials([made])[name].result(20)

    def grant(self, user: str, *rights: tuple[ResourceType, str, AclOperation]) -> None:
        """Rights on what has a name, or begins so: `name*`; they hold when this returns."""
        bindings = [
            AclBinding(
                kind, name.rstrip("*") or "*",
                ResourcePatternType.PREFIXED if len(name) > 1 and name.endswith("*") else ResourcePatternType.LITERAL,
                f"User:{user}", "*", right, AclPermissionType.ALLOW,
            )
            for kind, name, right in rights
        ]  # fmt: skip
        for future in self.admin.create_acls(bindings).values():
            future.result(20)


@contextmanager
def broker(kafka: Any, folder: Path) -> Iterator[Guarded]:
    """A broker with a door of each kind; `kafka` is the service of the lab."""
    authority, tokens = Authority(folder, "authority"), Tokens(folder)
    certificate, key = authority.issue("broker")
    (folder / "both.pem").write_text(Path(key).read_text() + Path(certificate).read_text())
    users = f'user_alice="{PASSWORD}" user_bob="{PASSWORD}" user_carol="{PASSWORD}"'
    login = "org.apache.kafka.common.security"
    settings = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "both.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": authority.file,
        "listener.name.mutual.ssl.client.auth": "required",
        "super.users": "User:ANONYMOUS;User:alice;User:CN=alice",
    }
    for door in ("sasl", "sasltls"):
        of = f"listener.name.{door}"
        settings |= {
            f"{of}.sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
            f"{of}.plain.sasl.jaas.config": f"{login}.plain.PlainLoginModule required {users};",
            f"{of}.scram-sha-256.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            f"{of}.scram-sha-512.sasl.jaas.config": f"{login}.scram.ScramLoginModule required;",
            f"{of}.oauthbearer.sasl.jaas.config": f"{login}.oauthbearer.OAuthBearerLoginModule required;",
            f"{of}.oauthbearer.sasl.server.callback.handler.class": f"{login}.oauthbearer.OAuthBearerValidatorCallbackHandler",
            f"{of}.oauthbearer.sasl.oauthbearer.jwks.endpoint.url": tokens.keys.as_uri(),
            f"{of}.oauthbearer.sasl.oauthbearer.expected.audience": AUDIENCE,
            f"{of}.oauthbearer.sasl.oauthbearer.expected.issuer": ISSUER,
        }
    with tokens.served(), kafka.cluster(folder, settings=settings, listeners=LISTENERS) as cluster:
        guarded = Guarded(cluster, authority, tokens)
        if cluster.brokers:
            guarded.add_user("alice")
        yield guarded
