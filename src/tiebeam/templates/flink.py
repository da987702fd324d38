"""Flink: a job for a session cluster, as a jar for `flink run`, and as a FlinkDeployment of the Kubernetes operator.

The Python of the job runs in an image beside the TaskManagers. Settings are those that docs/runners.md calls safe.
"""

from __future__ import annotations

from tiebeam import __version__
from tiebeam.templates._build import PLACEHOLDER, Settings, as_yaml, chosen, options_table, rendered
from tiebeam.templates._parameters import pipeline

TARGET_FLAGS = {"bucket", "flink_version"}
VERSION = "1.19"
_NAMES = ("README.md", "job.yaml", "flink.yaml", "submit.sh", "jar.sh", "flinkdeployment.yaml", "Dockerfile", "Dockerfile.flink")
_SHARED = "What it reads and writes lies on disks that every TaskManager sees.\n"


def build(asked: Settings) -> dict[str, str]:
    """The files of a job on Flink."""
    described = pipeline(asked.pipeline)
    version = asked.get("flink_version", VERSION)
    values = {
        "NAME": described.name,
        "SUMMARY": described.summary,
        "FLAGS": as_yaml(chosen(described, asked)),
        "IMAGE": asked.get("image", f"registry.example.com/tiebeam-{described.name}:{__version__}"),
        "FLINK": version,
        "FLINK_": version.replace(".", "_"),
        "STORE": f"s3://{asked.get('bucket', PLACEHOLDER)}/{described.name}",
        "UPGRADE": "savepoint" if described.streams else "stateless",
        "NOTE": "" if described.streams else _SHARED,
        "OPTIONS": options_table(described),
    }
    return {name: rendered(f"flink/{name}", values) for name in _NAMES}
