"""Services that tests need: what there is of each, and which of them CI must have.

A service is obtained by its module in `tiebeam.lab`, which takes the address given in the environment, else a program
on this machine, else builds or starts one. Where it cannot be had its tests are skipped with the reason; with
`CI=true` a service that CI needs fails them instead.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tiebeam.errors import ConfigError
from tiebeam.lab import airflow, bigquery, flink, gcs, kafka, prism, pubsub, spark


@dataclass(frozen=True)
class Service:
    """How a service is had, how to see whether it is here without making it, and why CI needs it, if it does."""

    obtain: Callable[[], Any]
    find: Callable[[], Any]
    needed_in_ci: str | None = None


SERVICES = {
    "pubsub": Service(pubsub.obtain, pubsub.find, needed_in_ci="everything that is said of Pub/Sub"),
    "gcs": Service(gcs.obtain, gcs.find, needed_in_ci="everything that is said of gs:// paths"),
    "prism": Service(prism.obtain, prism.find, needed_in_ci="the proofs that Prism loses rows outside its safe mode"),
    "kafka": Service(kafka.obtain, kafka.find, needed_in_ci="everything that is said of Kafka"),
    "bigquery": Service(bigquery.obtain, bigquery.find, needed_in_ci="everything that is said of BigQuery"),
    "flink": Service(flink.obtain, flink.find, needed_in_ci="streams on Flink: what is right, and what comes back after a loss"),
    "airflow": Service(airflow.obtain, airflow.find, needed_in_ci="the generated DAGs"),
    "spark": Service(spark.obtain, spark.find, needed_in_ci="the laws on Spark"),
}


def obtain(name: str) -> Any:
    """The service of that name; skips the test, or fails it in CI, where there is none."""
    service = SERVICES[name]
    try:
        return service.obtain()
    except ConfigError as e:
        reason = "; ".join(p.what for p in e.problems)
    if os.environ.get("CI") == "true" and service.needed_in_ci:
        pytest.fail(f"CI needs {name}, for {service.needed_in_ci}: {reason}")
    pytest.skip(f"no {name}: {reason}")


@functools.cache
def broker() -> kafka.Cluster:
    """A broker of Kafka, for as long as the tests run."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="tiebeam-kafka-", ignore_cleanup_errors=True))
    return stack.enter_context(obtain("kafka").cluster(Path(folder)))


def report() -> list[str]:
    """One line per service: how it was found, or that it is not here."""
    lines = []
    for name, service in SERVICES.items():
        try:
            found = service.find()
            lines.append(f"{name}: {found.how}: {found.path}" if found else f"{name}: not here (obtained when a test needs it)")
        except ConfigError as e:
            lines.append(f"{name}: {'; '.join(p.what for p in e.problems)}")
    return lines
