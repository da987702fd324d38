"""Dataflow: a flex template of a pipeline, with its image, the commands that make and run it, and Terraform.

`metadata.json` is what https://cloud.google.com/dataflow/docs/reference/rest/v1b3/projects.locations.flexTemplates calls TemplateMetadata.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

from tiebeam import __version__
from tiebeam.errors import ConfigError, Problem
from tiebeam.templates._build import PLACEHOLDER, Settings, chosen, options_table, rendered
from tiebeam.templates._parameters import Parameter, Pipeline, pipeline

TARGET_FLAGS = {"bucket", "project", "push", "region"}
REGION = "europe-west1"
_OBJECT = r"^gs://[a-z0-9][a-z0-9._-]+/?[^\n\r]*$"
_BY_PLACE = {
    "files": ("GCS_READ_FILE", _OBJECT),
    "folder": ("GCS_WRITE_FOLDER", _OBJECT),
    "pubsub_topic": ("PUBSUB_TOPIC", r"^projects/[^/\n\r]+/topics/[^/\n\r]+$"),
    "pubsub_subscription": ("PUBSUB_SUBSCRIPTION", r"^projects/[^/\n\r]+/subscriptions/[^/\n\r]+$"),
    "bigquery_table": ("BIGQUERY_TABLE", r"^[^\n\r]+[:.][^\n\r]+\.[^\n\r]+$"),
}
_WHOLE, _NUMBER = r"-?[0-9][0-9_]*", r"-?[0-9.]+([eE][-+]?[0-9]+)?"
_SECRET = r"^(env|file):[^\n\r]+$"


def build(asked: Settings) -> dict[str, str]:
    """The files of a flex template."""
    described = pipeline(asked.pipeline, one_machine=False)
    flags = chosen(described, asked)
    image = asked.get(
        "image", f"{asked.get('region', REGION)}-docker.pkg.dev/{asked.get('project', PLACEHOLDER)}/tiebeam/{described.name}:{__version__}"
    )
    values = {
        "NAME": described.name,
        "VERSION": __version__,
        "SUMMARY": described.summary,
        "IMAGE": image,
        "PROJECT": asked.get("project", PLACEHOLDER),
        "REGION": asked.get("region", REGION),
        "BUCKET": asked.get("bucket", PLACEHOLDER),
        "OPTIONS": options_table(described),
        "STREAMING": _STREAMING if described.streams else "",
        **_terraform(described, flags, asked),
    }
    names = ("README.md", "Dockerfile", "launch.py", "cloudbuild.yaml", "build.sh", "run.sh", "main.tf")
    files = {name: rendered(f"dataflow/{name}", values) for name in (*names, *(("update.sh",) if described.streams else ()))}
    files["metadata.json"] = json.dumps(metadata(described), indent=2, ensure_ascii=False) + "\n"
    files["parameters.yaml"] = _parameters(flags)
    return files


def drive(asked: Settings) -> None:
    """Builds and pushes the image with `--push`, and the template with `--bucket`, by gcloud."""
    steps = [what for what, flag in (("image", "push"), ("template", "bucket")) if flag in asked.given]
    if missing := [flag for flag in ("image", "project") if steps and not asked.given.get(flag)]:
        raise ConfigError(*(Problem("is required with --push and --bucket", f"--{flag}") for flag in missing))
    if steps and not shutil.which("gcloud"):
        raise ConfigError(Problem("there is no gcloud on PATH", "--push, --bucket", "install it, or run build.sh where it is"))
    for what in steps:
        if subprocess.run([str((asked.output / "build.sh").absolute()), what]).returncode:
            raise ConfigError(
                Problem(f"gcloud could not make the {what}; it says why above", "build.sh", f"{asked.output}/build.sh {what}")
            )


def metadata(p: Pipeline) -> dict[str, Any]:
    """The template as Dataflow's console and API know it."""
    told: dict[str, Any] = {"name": f"tiebeam {p.name}", "description": p.summary, "streaming": p.streams}
    if p.streams:
        told |= {"supportsExactlyOnce": True, "supportsAtLeastOnce": False, "defaultStreamingMode": "EXACTLY_ONCE"}
    return {**told, "parameters": [_parameter(p, one) for one in p.parameters]}


def _parameter(p: Pipeline, one: Parameter) -> dict[str, Any]:
    kind, regex = _type(one)
    told: dict[str, Any] = {
        "name": one.name,
        "label": one.label,
        "helpText": f"{one.help} Example: {one.option.example}" if one.option.example and kind == "TEXT" else one.help,
        "isOptional": not one.required,
        "paramType": kind,
        "groupName": one.group,
    }
    if regex:
        told["regexes"] = [regex]
    if one.parent:
        told |= {"parentName": one.parent, "parentTriggerValues": list(one.parents)}
    if kind == "ENUM":
        told["enumOptions"] = [{"value": c, "label": c} for c in one.choices]
    if one.default is not None:
        told["defaultValue"] = one.default
    return told


def _type(one: Parameter) -> tuple[str, str | None]:
    """The type of a parameter, and what its text must look like."""
    o = one.option
    if one.choices:
        return "ENUM", None
    if o.kind is bool:
        return "BOOLEAN", None
    if o.kind in (int, float):
        return "NUMBER", f"^{_WHOLE if o.kind is int else _NUMBER}$"
    if o.secret:
        return "TEXT", _SECRET
    return _BY_PLACE.get(o.place or "", ("TEXT", None))


def _parameters(flags: dict[str, str]) -> str:
    """Parameters for `gcloud --flags-file`: there no comma needs to be escaped."""
    lines = [f"  {name}: {json.dumps(value, ensure_ascii=False)}" for name, value in flags.items()]
    head = "# What the job reads and writes; metadata.json and README.md list all there is.\n"
    return "\n".join([f"{head}--parameters:", *lines]) + "\n"


def _terraform(p: Pipeline, flags: dict[str, str], asked: Settings) -> dict[str, str]:
    required = [one.name for one in p.parameters if one.required]
    wide = max(map(len, flags), default=0)

    def default(flag: str) -> str:
        return f'  default     = "{asked.given[flag]}"\n' if asked.given.get(flag) else ""

    return {
        "PROJECT_DEFAULT": default("project"),
        "BUCKET_DEFAULT": default("bucket"),
        "PARAMETERS": "\n".join(f"    {name:<{wide}} = {_quoted(value)}" for name, value in flags.items()),
        "REQUIRED": ", ".join(f'"{name}"' for name in required),
        "REQUIRED_SHOWN": ", ".join(required) or "none",
        "KNOWN": "\n".join(f'      "{one.name}",' for one in p.parameters),
        "ON_DELETE": "drain" if p.streams else "cancel",
    }


def _quoted(value: str) -> str:
    """Text of Terraform, in which nothing is filled in."""
    return json.dumps(value, ensure_ascii=False).replace("${", "$${").replace("%{", "%%{")


_STREAMING = """\
A source without end makes the job a stream: `tiebeam drain JOB_ID …` ends it with all that it has read published,
`./update.sh my-job` replaces it.

"""
