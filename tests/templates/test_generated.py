"""The generated files against what reads them: a schema of ours, HCL, the CRD of Flink's operator, shell, pip."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import hcl2
import pytest
import yaml

from support.schema import wrong
from tiebeam import __version__, registry, wheel
from tiebeam.errors import ConfigError
from tiebeam.lab import _machine
from tiebeam.options import PLACES, declared
from tiebeam.runners import SAFE_ON_FLINK

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "docs" / "generated" / "templates"
OPERATOR = "1.10.0"
REQUIREMENTS = ROOT / "src/tiebeam/templates/files/requirements.txt"
WORK_SECS = 3


def files(pattern):
    found = sorted(GENERATED.glob(pattern))
    assert found, pattern
    return found


def name(path):
    return str(path.relative_to(GENERATED))


@pytest.mark.parametrize("path", files("*/dataflow/metadata.json"), ids=name)
def test_metadata_fits_its_schema(path):
    told = json.loads(path.read_text())
    schema = json.loads(Path(__file__).with_name("metadata.schema.json").read_text())
    assert list(wrong(told, schema)) == []
    told["parameters"][0] |= {"paramType": "PATH", "regex": "x"}
    assert len(list(wrong(told, schema))) == 2


@pytest.mark.parametrize("path", files("*/dataflow/main.tf"), ids=name)
def test_terraform_is_hcl_and_knows_every_parameter(path):
    """Parsed by python-hcl2; `terraform validate` would need the provider, which is not in the indexes used here."""
    told = hcl2.loads(path.read_text())
    (job,) = told["resource"]
    ((kind, resources),) = [(k.strip('"'), v) for k, v in job.items()]
    assert kind == "google_dataflow_flex_template_job"
    assert {"container_spec_gcs_path", "parameters", "on_delete", "max_workers"} <= set(
        next(v for v in resources.values() if isinstance(v, dict))
    )
    text = path.read_text()
    for parameter in json.loads((path.parent / "metadata.json").read_text())["parameters"]:
        assert f'"{parameter["name"]}",' in text


@pytest.mark.skipif(not shutil.which("terraform"), reason="no terraform on PATH")
@pytest.mark.parametrize("path", files("*/dataflow/main.tf"), ids=name)
def test_terraform_is_formatted_as_terraform_does(path):
    ran = subprocess.run(["terraform", "fmt", "-check", "-diff", "-"], input=path.read_text(), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.fixture(scope="session")
def crd():
    """The schema of a FlinkDeployment, out of the operator's own jar."""

    def fetch(folder, draft):
        dependency = _machine.dependency("org.apache.flink", "flink-kubernetes-operator-api", OPERATOR)
        jars = _machine.maven_jars(folder, folder / "jars", dependency, "operator", "let Maven reach an index")
        draft.mkdir()
        jar = next(jar for jar in jars if jar.name.startswith("flink-kubernetes-operator-api"))
        zipfile.ZipFile(jar).extract("META-INF/fabric8/flinkdeployments.flink.apache.org-v1.yml", draft)

    try:
        folder = _machine.fetched(f"flink-operator-crd-{OPERATOR}", fetch)
    except ConfigError as e:
        pytest.skip(f"no CRD: {e}")
    told = yaml.load(next(folder.rglob("*.yml")).read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (version,) = (v for v in told["spec"]["versions"] if v["name"] == "v1beta1")
    return version["schema"]["openAPIV3Schema"]


@pytest.mark.parametrize("path", files("*/flink/flinkdeployment.yaml"), ids=name)
def test_the_manifest_is_what_the_operator_takes(crd, path):
    told = yaml.safe_load(path.read_text())
    assert told["apiVersion"] == "flink.apache.org/v1beta1"
    spec = crd["properties"]["spec"]
    assert list(wrong(told["spec"], spec, "spec")) == []
    told["spec"]["job"] |= {"upgradeMode": "carefully", "paralelism": 2}
    assert len(list(wrong(told["spec"], spec, "spec"))) == 2
    assert all(isinstance(value, str) for value in told["spec"]["flinkConfiguration"].values())


@pytest.mark.parametrize("path", files("*/flink/flink.yaml"), ids=name)
def test_settings_for_flink_are_the_safe_ones(path):
    told = {option: str(value) for option, value in yaml.safe_load(path.read_text()).items()}
    safe = {option: value for option, value in SAFE_ON_FLINK.items() if value}  # a flag without a value cannot stand in a file
    assert {option: told[option] for option in safe} == safe
    manifest = yaml.safe_load(path.with_name("flinkdeployment.yaml").read_text())["spec"]["flinkConfiguration"]
    assert manifest["execution.checkpointing.interval"] == "10 s"
    assert manifest["pipeline.max-parallelism"] == safe["max_parallelism"]


@pytest.mark.parametrize("path", files("*/*/*.sh"), ids=name)
def test_scripts_are_shell_and_nothing_is_left_to_fill_in(path):
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert not re.search(r"@[A-Z_]{2,}@", path.read_text())


@pytest.mark.parametrize("path", files("*/*/Dockerfile*"), ids=name)
def test_images_are_of_our_beam_and_install_what_is_held_to_hashes(path):
    text = path.read_text()
    if path.name == "Dockerfile":
        assert f"apache/beam_python3.11_sdk:{metadata.version('apache-beam')}" in text
        assert "--require-hashes --requirement requirements.txt" in text
        assert wheel.name() in text
    assert not re.search(r"^(?!#|FROM|COPY|RUN|WORKDIR|ENV|ARG|ENTRYPOINT|    |$)", text, re.MULTILINE), "an instruction that is none"


def test_requirements_are_the_versions_of_the_tests_and_each_has_hashes():
    blocks = re.split(r"\n(?=\S)", REQUIREMENTS.read_text().partition("\n\n")[0])
    pins = {m[1].lower(): m[2] for b in blocks if (m := re.match(r"([\w.-]+)(?:\[.*\])?==(\S+)", b))}
    assert len(pins) > 100
    assert all("--hash=sha256:" in b for b in blocks if "==" in b and not b.startswith("#"))
    tested = dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?==(\S+)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))
    needed = {re.split(r"[\[>=<; ]", r)[0].lower() for r in metadata.requires("tiebeam") if "extra" not in r or re.search("gcp|kafka", r)}
    assert needed <= set(pins)
    assert {n: v for n, v in tested.items() if n.lower() in pins and pins[n.lower()] != v} == {}


def test_the_wheel_is_whole_and_the_same_each_time():
    file, content = wheel.made()
    assert (file, content) == wheel.made()
    with zipfile.ZipFile(io.BytesIO(content)) as made:
        record = dict(line.split(",", 1) for line in made.read(f"tiebeam-{__version__}.dist-info/RECORD").decode().splitlines())
        assert set(record) == set(made.namelist())
        for path, told in record.items():
            if told != ",":
                digest = base64.urlsafe_b64encode(hashlib.sha256(made.read(path)).digest()).rstrip(b"=").decode()
                assert told == f"sha256={digest},{len(made.read(path))}"
        assert {"tiebeam/cli.py", "tiebeam/pipelines/retail.odcs.yaml", "tiebeam/templates/files/requirements.txt"} <= set(record)


def test_the_wheel_is_installed_and_makes_templates_itself(tmp_path):
    """In an environment that has nothing of ours but the wheel, over the packages of this one."""
    file, content = wheel.made()
    (tmp_path / file).write_bytes(content)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", f"--target={tmp_path}/site", str(tmp_path / file)]
    subprocess.run(pip, check=True, capture_output=True)
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}/site"}
    code = "import tiebeam, sys; from tiebeam import cli; print(tiebeam.__file__); sys.exit(cli.main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", code, "template", "build", "ingest", "--target=flink", "--output=made"]
    ran = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.splitlines()[0].startswith(str(tmp_path / "site"))
    assert (tmp_path / "made" / file).read_bytes() == content


@pytest.mark.parametrize("target", registry.TARGETS)
def test_a_template_is_built_within_three_seconds_of_work(tmp_path, target):
    """Counted in processor time, which does not depend on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-m", "tiebeam", "template", "build", "ingest", f"--target={target}", f"--output={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2 * WORK_SECS, "twice the time for a slow machine"


def test_options_that_name_a_place_say_so():
    """Where a connector is added: an option called so is a file, a folder, a topic or a table, and a template has a type for it."""
    telling = {"topic": "pubsub", "subscription": "pubsub", "table": "bigquery"}
    for entry in registry.entries("connectors"):
        for role in entry.roles if entry.name in registry.CONNECTORS else ():
            for o in declared(registry.connector(role, entry.name)):
                assert o.place is None or o.place in PLACES
                if o.name == "path" or telling.get(o.name) == entry.name:
                    assert o.place, f"{entry.name}: option({o.name}, place=…)"
