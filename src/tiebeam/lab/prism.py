"""Prism: Beam's local streaming runner, one Go program that Beam itself starts for each job.

Looked for in this order: `PRISM_BINARY`, `prism` on PATH, the cache (`~/.cache/tiebeam`), and built by Go 1.26.1 or
newer (90 seconds, 66 MB; https://github.com/apache/beam/tree/master/sdks/go/cmd/prism), of the version of Beam installed.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tiebeam.errors import ConfigError, Problem
from tiebeam.lab._machine import cached
from tiebeam.runners import PRISM_RULE

ENV = "PRISM_BINARY"
MODULE = "github.com/apache/beam/sdks/v2/go/cmd/prism"
BUILD_SECS = 900

_LEASH = """#!/bin/sh
trap '' INT
{prism} "$@" & prism=$!
trap 'kill "$prism"' TERM
{{ trap '' TERM; while kill -0 "$PPID" 2>/dev/null; do sleep 1; done; kill "$prism"; }} >/dev/null 2>&1 &
watch=$!
wait "$prism"; status=$?
kill -KILL "$watch" 2>/dev/null
exit "$status"
"""


@dataclass(frozen=True)
class Prism:
    """A Prism program on this machine, and how it was found."""

    path: str
    how: str

    def flags(self) -> list[str]:
        """The flags that run a job on a Prism of its own, in the mode in which it loses nothing (docs/runners.md)."""
        return [
            "--runner=PrismRunner",
            f"--prism_location={_leashed(self.path)}",
            f"--experiments={PRISM_RULE}",
            "--experiments=disable_prism_server_singleton",
        ]


def _leashed(path: str) -> Path:
    """A program that runs Prism so that it does not hear an interrupt, which the job answers, and ends with the job's process."""
    text = _LEASH.format(prism=shlex.quote(path))
    leash = cached(f"prism-leash-{hashlib.sha256(text.encode()).hexdigest()[:12]}.sh")
    if not leash.exists():
        leash.parent.mkdir(parents=True, exist_ok=True)
        draft = leash.with_suffix(f".{os.getpid()}")
        draft.write_text(text)
        draft.chmod(0o755)
        draft.replace(leash)
    return leash


def find() -> Prism | None:
    """The Prism that is here already, without building one."""
    if given := os.environ.get(ENV):
        if not _is_prism(given):
            raise ConfigError(Problem(f"is no Prism: {given}", ENV, "the path of a prism program that can be run"))
        return Prism(given, f"given by {ENV}")
    if (found := shutil.which("prism")) and _is_prism(found):
        return Prism(found, "found on PATH")
    if (kept := _kept()).is_file():
        return Prism(str(kept), "built before, kept in the cache")
    return None


def obtain() -> Prism:
    """The Prism that is here, or one built now; raises ConfigError when neither can be had."""
    return find() or _build()


def _is_prism(path: str) -> bool:
    """Tells Beam's Prism from other programs of that name."""
    try:
        told = subprocess.run([path, "-help"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return "-job_port" in told.stdout + told.stderr


def _kept() -> Path:
    return cached(f"prism-{metadata.version('apache-beam')}")


def _build() -> Prism:
    fix = f"set {ENV} to a prism program, or install Go from https://go.dev/dl/"
    if not shutil.which("go"):
        raise ConfigError(Problem("Prism is not on this machine, and without Go it cannot be built", "prism", fix))
    kept = _kept()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        command = ["go", "install", f"{MODULE}@v{metadata.version('apache-beam')}"]
        try:
            subprocess.run(command, env={**os.environ, "GOBIN": folder}, capture_output=True, text=True, timeout=BUILD_SECS, check=True)
        except subprocess.CalledProcessError as e:
            last = (e.stderr.strip().splitlines() or ["no output"])[-1]
            raise ConfigError(Problem(f"Prism could not be built: {last}", " ".join(command), fix)) from None
        except subprocess.TimeoutExpired:
            raise ConfigError(Problem(f"Prism was not built within {BUILD_SECS} s", " ".join(command), fix)) from None
        (Path(folder) / "prism").replace(kept)  # in one step, so that two who build at once do not meet half a program
    return Prism(str(kept), "built by go install")
