"""Spark: a batch job through Beam's job server. Streams are refused: the portable runner of Beam cannot run them."""

from __future__ import annotations

from tiebeam import __version__
from tiebeam.errors import ConfigError
from tiebeam.runners import without_streams
from tiebeam.templates._build import Settings, as_yaml, chosen, endless, options_table, rendered
from tiebeam.templates._parameters import pipeline

TARGET_FLAGS: set[str] = set()
_NAMES = ("README.md", "job.yaml", "spark.yaml", "jobserver.sh", "submit.sh", "Dockerfile")


def build(asked: Settings) -> dict[str, str]:
    """The files of a job on Spark; raises ConfigError for a source without end."""
    described = pipeline(asked.pipeline)
    flags = chosen(described, asked)
    if endless(asked):
        raise ConfigError(*without_streams("SparkRunner"))
    values = {
        "NAME": described.name,
        "SUMMARY": described.summary,
        "FLAGS": as_yaml(flags),
        "IMAGE": asked.get("image", f"registry.example.com/tiebeam-{described.name}:{__version__}"),
        "OPTIONS": options_table(described),
    }
    return {name: rendered(f"spark/{name}", values) for name in _NAMES}
