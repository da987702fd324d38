"""Airflow: a real one of version 3 in an environment of its own, to try generated DAGs with.

`AIRFLOW_PYTHON=PATH` names the Python of one that is here. Else it is installed by pip into the cache (`~/.cache/tiebeam`):
one minute, 300 MB. Each instance has a database of its own in a folder, and needs no server: `dag.test()` runs a DAG in its process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.lab._machine import cached, call, fetched

ENV = "AIRFLOW_PYTHON"
VERSION = "3.3.2"
RUN_SECS = 600

_FIX = f"set {ENV} to the Python of an environment with Airflow 3, or let pip reach an index"
_NAME = f"airflow-{VERSION}"


@dataclass(frozen=True)
class Airflow:
    """The Python that has Airflow, and how it was found."""

    path: str
    how: str

    def instance(self, folder: Path) -> Instance:
        """An Airflow with a database of its own in a folder, and a folder `dags` in it."""
        (folder / "dags").mkdir(parents=True)
        made = Instance(self.path, folder)
        made.call("-m", "airflow", "db", "migrate")
        return made


@dataclass(frozen=True)
class Instance:
    """An Airflow home."""

    python: str
    folder: Path

    def call(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        """Runs Python there and gives what it printed; ConfigError with its last words when it fails."""
        settings = {
            "AIRFLOW_HOME": str(self.folder),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
            "AIRFLOW__CORE__DAGS_FOLDER": str(self.folder / "dags"),
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
            "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{self.folder}/airflow.db",
        }
        given = {**os.environ, **settings, **(env or {})}
        ran = subprocess.run([self.python, *words], cwd=self.folder, env=given, capture_output=True, text=True, timeout=RUN_SECS)
        if ran.returncode:
            last = (ran.stderr or ran.stdout).strip().splitlines() or ["it said nothing"]
            raise ConfigError(Problem(f"Airflow failed: {last[-1]}", " ".join(words[:4]), _FIX))
        return ran.stdout


def find() -> Airflow | None:
    """The Airflow that is here already, without installing it."""
    if given := os.environ.get(ENV):
        return Airflow(given, f"given by {ENV}")
    python = cached(_NAME) / "bin" / "python"
    return Airflow(str(python), "installed before, kept in the cache") if python.exists() else None


def obtain() -> Airflow:
    """The Airflow that is here, or one installed now; raises ConfigError when neither can be had."""
    return find() or Airflow(str(fetched(_NAME, _install) / "bin" / "python"), "installed by pip")


def _install(_: Path, draft: Path) -> None:
    call([sys.executable, "-m", "venv", str(draft)], "airflow", _FIX)
    call([str(draft / "bin" / "python"), "-m", "pip", "install", "-q", f"apache-airflow=={VERSION}"], "airflow", _FIX)
