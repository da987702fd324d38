"""BigQuery: an emulator of its REST and Storage services, in memory.

`BIGQUERY_EMULATOR_HOST=http://HOST:PORT` with `BIGQUERY_STORAGE_EMULATOR_HOST=HOST:PORT` names one that runs already. Else
bqemulator is installed into an environment of its own in the cache (`~/.cache/tiebeam`, 90 seconds, 600 MB); it starts in three
seconds, and what it holds ends with it. What it cannot prove about Google's BigQuery: docs/bigquery.md.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.lab._machine import Leashed, answers, cached, call, fetched, free_ports

ENV, STORAGE_ENV = "BIGQUERY_EMULATOR_HOST", "BIGQUERY_STORAGE_EMULATOR_HOST"
PROJECT = "lab"
START_SECS = 240  # three seconds, where nothing else runs
VERSIONS = (
    "bqemulator==1.4.0",
    "duckdb==1.5.5",
    "duckdb-extensions==1.5.5",
    "duckdb-extension-spatial==1.5.5",  # without it the emulator does not start
    "duckdb-extension-avro==1.5.5",
    "numpy==2.4.6",  # which duckdb needs, and does not ask for
)

_FIX = f"set {ENV} and {STORAGE_ENV} to one that runs, or make the Python package index reachable for pip"
_NAME = f"bigquery-{hashlib.sha256(' '.join(VERSIONS).encode()).hexdigest()[:12]}"
_INSTALLED = 'from duckdb_extensions import import_extension as i; i("spatial"); i("avro")'


@dataclass(frozen=True)
class Emulator:
    """A running emulator: where its REST service and its Storage service are."""

    rest: str
    storage: str
    settings: Path | None = None
    """What makes `bq` of the Cloud SDK talk to this emulator, where that is installed."""

    @property
    def servers(self) -> str:
        """Both addresses, as people are told them."""
        return f"{self.rest} {self.storage}"

    @property
    def environment(self) -> dict[str, str]:
        """What a client is told to find it."""
        found = {ENV: self.rest, STORAGE_ENV: self.storage}
        return found | ({"BIGQUERYRC": str(self.settings), "CLOUDSDK_AUTH_ACCESS_TOKEN": "none"} if self.settings else {})


@dataclass(frozen=True)
class BigQuery:
    """The emulator's environment on this machine, or the addresses of one that runs, and how it was found."""

    path: str
    how: str
    running: Emulator | None = None

    @contextmanager
    def cluster(self, folder: Path) -> Iterator[Emulator]:
        """An emulator that ends with the block; the running one, when its addresses were given.

        What it loads from gs:// it finds with the Cloud Storage in the folder beside (tiebeam.lab.gcs).
        """
        if self.running:
            yield self.running
            return
        folder.mkdir(parents=True, exist_ok=True)
        rest, storage = free_ports(2)
        launcher = str(Path(__file__).with_name("_bigquery_emulator.py"))
        start = ["start", "--rest-port", str(rest), "--grpc-port", str(storage), "--project", PROJECT, "--log-level", "warning"]
        objects = folder.parent / "gcs" / "objects"
        objects.mkdir(parents=True, exist_ok=True)
        told = {
            "HOME": str(Path(self.path) / "home"),
            "BQEMU_GCS_LOCAL_ROOT": str(objects),
            "BQEMU_QUERY_CACHE_TTL_SECONDS": "0",
            "PYTHONPATH": "",
        }
        program = Leashed([_python(self.path), launcher, *start], folder / "log", folder, told)
        try:
            program.await_ready(lambda: _ready(rest, storage), "bigquery", START_SECS, _FIX)
            yield Emulator(f"http://127.0.0.1:{rest}", f"127.0.0.1:{storage}", _settings_of_bq(rest, folder))
        finally:
            program.kill()


def find() -> BigQuery | None:
    """The emulator that is here already, without installing one."""
    rest, storage = os.environ.get(ENV), os.environ.get(STORAGE_ENV)
    if rest and storage:
        for address in (rest.partition("://")[2] or rest, storage):
            if not answers(address):
                raise ConfigError(Problem(f"nothing answers at {address}", ENV, f"{ENV}=http://HOST:PORT {STORAGE_ENV}=HOST:PORT"))
        return BigQuery(rest, f"given by {ENV}", Emulator(rest, storage))
    return BigQuery(str(cached(_NAME)), "installed before, kept in the cache") if cached(_NAME).is_dir() else None


def obtain() -> BigQuery:
    """The emulator that is here, or one installed now; raises ConfigError when neither can be had."""
    return find() or BigQuery(str(fetched(_NAME, _install)), "installed by pip")


def _install(_: Path, draft: Path) -> None:
    call([sys.executable, "-m", "venv", str(draft)], "bigquery", _FIX)
    python = _python(str(draft))
    call([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *VERSIONS], "bigquery", _FIX)
    (draft / "home").mkdir()
    call(["env", f"HOME={draft / 'home'}", python, "-c", _INSTALLED], "bigquery", _FIX)


def _settings_of_bq(rest: int, folder: Path) -> Path | None:
    """A file of settings for `bq`; it is given the description of the service, which the emulator does not have."""
    root = Path(shutil.which("bq") or "").resolve().parent.parent
    described = sorted(root.glob("platform/bq/discovery*/bigquery.json"))
    if not described:
        return None
    file = folder / "bigqueryrc"
    file.write_text(f"api=http://127.0.0.1:{rest}\nproject_id={PROJECT}\ndiscovery_file={described[-1]}\n")
    return file


def _python(environment: str) -> str:
    return str(Path(environment) / "bin" / "python")


def _ready(rest: int, storage: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{rest}/bigquery/v2/projects/{PROJECT}/datasets", timeout=5) as answer:
            return answer.status == 200 and answers(f"127.0.0.1:{storage}")
    except (OSError, urllib.error.URLError):
        return False
