"""What every test can use: the services of the lab, and a report of which of them were found, and how."""

from __future__ import annotations

import pytest

from support import services


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
