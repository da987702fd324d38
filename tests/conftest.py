"""What every test can use: the services of the lab, and a report of which of them were found, and how."""

from __future__ import annotations

import pytest

from support import services
from tiebeam.gcs import forget_client


def pytest_report_header() -> list[str]:
    return ["services: " + line for line in services.report()]


def pytest_terminal_summary(terminalreporter) -> None:
    if terminalreporter.config.get_verbosity() < 0:  # the header was not shown
        for line in services.report():
            terminalreporter.write_line("services: " + line)


@pytest.fixture(scope="session")
def prism():
    """A Prism program; `prism.flags()` runs a job on it."""
    return services.obtain("prism")


@pytest.fixture(scope="module")
def flink():
    """A cluster of Flink, new for each module: jobs leave classes behind in it; `flink.flags()` runs a job on it."""
    with services.obtain("flink").cluster() as cluster:
        yield cluster


@pytest.fixture(scope="session")
def spark():
    """A job server with a Spark inside, for batch jobs, one at a time; `spark.flags()` runs a job on it."""
    with services.obtain("spark").server() as server:
        yield server


@pytest.fixture(scope="session")
def kafka():
    """A broker of Kafka, for the whole session."""
    return services.broker()


@pytest.fixture(scope="session")
def google(tmp_path_factory):
    """A folder in which services of Google's find each other's data."""
    return tmp_path_factory.mktemp("google")


@pytest.fixture(scope="session")
def gcs_server(google):
    """A Cloud Storage, for the whole session."""
    with services.obtain("gcs").cluster(google / "gcs") as server:
        yield server


@pytest.fixture
def gcs(gcs_server, monkeypatch):
    """Cloud Storage for one test, which has it to itself: `gcs.bucket(name)` makes a bucket, and all paths gs:// lead to it."""
    for name, value in gcs_server.environment.items():
        monkeypatch.setenv(name, value)
    forget_client()
    yield gcs_server
    forget_client()


@pytest.fixture(scope="session")
def pubsub(tmp_path_factory):
    """Google's Pub/Sub emulator, for the whole session."""
    with services.obtain("pubsub").cluster(tmp_path_factory.mktemp("pubsub")) as server:
        yield server


@pytest.fixture(scope="session")
def bigquery(google):
    """An emulator of BigQuery, for the whole session."""
    with services.obtain("bigquery").cluster(google / "bigquery") as emulator:
        yield emulator
