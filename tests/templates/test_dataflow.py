"""The flex templates: their metadata as Dataflow parses it, what they refuse, and what gcloud makes of them where it is here."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from tiebeam import cli, registry
from tiebeam.options import declared

PIPELINES = ["ingest", "rollup", "sessions"]


def built(tmp_path, *argv):
    assert cli.main(["template", "build", *argv, f"--output={tmp_path}"]) == 0
    return tmp_path


@pytest.fixture(params=PIPELINES)
def template(request, tmp_path):
    return request.param, built(tmp_path, request.param, "--target=dataflow")


def test_metadata_is_what_dataflow_parses(template):
    from google.cloud.dataflow_v1beta3 import TemplateMetadata

    name, folder = template
    text = (folder / "metadata.json").read_text()
    parsed = TemplateMetadata.from_json(text, ignore_unknown_fields=False)
    assert parsed.name == f"tiebeam {name}"
    again = json.loads(TemplateMetadata.to_json(parsed, use_integers_for_enums=False, including_default_value_fields=False))
    assert [p["name"] for p in again["parameters"]] == [p["name"] for p in json.loads(text)["parameters"]]
    with pytest.raises(Exception, match="no field named"):
        TemplateMetadata.from_json(text.replace('"helpText"', '"help"', 1), ignore_unknown_fields=False)


def test_metadata_asks_for_every_option_and_only_for_those_of_the_chosen_connector(template):
    name, folder = template
    parameters = {p["name"]: p for p in json.loads((folder / "metadata.json").read_text())["parameters"]}
    for o in declared(registry.pipeline(name).Options):
        assert parameters[o.name]["isOptional"] == (not o.required)
        for connector in parameters[o.name].get("enumOptions", []) if o.role else ():
            for of_connector in declared(registry.connector(o.role, connector["value"])):
                told = parameters[f"{o.name}_{of_connector.name}"]
                assert told["parentName"] == o.name
                assert connector["value"] in told["parentTriggerValues"]
    assert len(parameters) == len(json.loads((folder / "metadata.json").read_text())["parameters"])


def test_regexes_take_the_examples_and_defaults_and_not_what_is_wrong(template):
    _, folder = template
    for p in json.loads((folder / "metadata.json").read_text())["parameters"]:
        for regex in p.get("regexes", ()):
            if "defaultValue" in p:
                assert re.fullmatch(regex, p["defaultValue"]), p
            assert not re.fullmatch(regex, "in/*.jsonl\n"), p
    by_name = {p["name"]: p for p in json.loads((folder / "metadata.json").read_text())["parameters"]}
    (regex,) = by_name["source_path"]["regexes"]
    assert re.fullmatch(regex, "gs://bucket/in/*.jsonl")
    assert not re.fullmatch(regex, "in/*.jsonl")
    (secret,) = by_name["source_password"]["regexes"]
    assert re.fullmatch(secret, "env:PASSWORD")
    assert not re.fullmatch(secret, "hunter2")


def test_a_file_of_one_machine_is_no_place_of_a_job_on_dataflow(tmp_path, capsys):
    built(tmp_path, "ingest", "--target=dataflow")
    assert "duckdb" not in (tmp_path / "metadata.json").read_text()
    assert cli.main(["template", "build", "retail", "--target=dataflow", f"--output={tmp_path}/retail"]) == 2
    assert "disk of one machine (--input)" in capsys.readouterr().err
    for command in ("live", "replay"):
        assert cli.main(["template", "build", command, "--target=dataflow", f"--output={tmp_path}/{command}"]) == 2
        assert "no graph that a platform could run" in capsys.readouterr().err
    assert not list(tmp_path.glob("*/metadata.json"))


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["ingest"], "takes one pipeline and a target"),
        (["ingest", "--target=datafow"], "did you mean dataflow?"),
        (["ingst", "--target=dataflow"], "did you mean ingest?"),
        (["ingest", "--target=dataflow", "--sorce=jsonl"], "did you mean --source?"),
        (["ingest", "--target=dataflow", "--source=jsonlines"], "'jsonlines' is not one of"),
        (["ingest", "--target=dataflow", "--source=kafka", "--source_password=hunter2"], "never the secret itself"),
        (["ingest", "--target=dataflow", "--max_attempts=many"], "expected a whole number"),
        (["ingest", "--target=dataflow", "--push"], "--image: is required"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_pushed(tmp_path, capsys, flags, told):
    assert cli.main(["template", "build", *flags, f"--output={tmp_path}/out"]) == 2
    said = capsys.readouterr().err
    assert told in said
    assert "hunter2" not in said


def test_flags_of_the_pipeline_are_the_parameters_of_the_job(tmp_path):
    flags = ["--source=csv", "--source_path=gs://b/in/*.csv", "--source_delimiter=;", "--sink=parquet", "--sink_path=gs://b/out/"]
    built(tmp_path, "ingest", "--target=dataflow", *flags, "--sink_partition_by=day,shop")
    told = yaml.safe_load((tmp_path / "parameters.yaml").read_text())["--parameters"]
    assert told == {f.partition("=")[0][2:]: f.partition("=")[2] for f in [*flags, "--sink_partition_by=day,shop"]}


def test_launch_hands_over_what_the_launcher_gives(tmp_path):
    built(tmp_path, "ingest", "--target=dataflow")
    code = (
        "import launch\nprint(launch.flags(['--a=1', '--empty=', '--b=x,y'], 'image:1'))\n"
        "print(launch.flags(['--sdk_container_image=other'], 'image:1'))"
    )
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == [
        "['--a=1', '--b=x,y', '--sdk_container_image=image:1', '--sdk_location=container']",
        "['--sdk_container_image=other']",
    ]


def test_scripts_are_shell(template):
    _, folder = template
    for script in folder.glob("*.sh"):
        assert script.stat().st_mode & 0o100
        subprocess.run(["bash", "-n", script], check=True)


@pytest.mark.skipif(not shutil.which("gcloud"), reason="no gcloud on PATH")
def test_gcloud_takes_the_metadata(tmp_path):
    built(tmp_path, "ingest", "--target=dataflow")
    command = ["gcloud", "dataflow", "flex-template", "build", "gs://b/t.json", "--image=gcr.io/p/i:1", "--sdk-language=PYTHON"]
    ran = subprocess.run(
        [*command, "--metadata-file=metadata.json", "--print-only", "--project=p"], cwd=tmp_path, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert (
        json.loads(yaml.safe_load(ran.stdout))["metadata"]["parameters"]
        == json.loads((tmp_path / "metadata.json").read_text())["parameters"]
    )


@pytest.mark.skipif(not os.environ.get("TIEBEAM_LONG_TESTS"), reason="minutes of downloads: TIEBEAM_LONG_TESTS=1 runs it")
@pytest.mark.skipif(sys.version_info[:2] != (3, 11), reason="the hashes are those of files for Python 3.11, which the image has")
def test_the_layers_of_the_image_can_be_installed(tmp_path):
    folder = built(tmp_path, "ingest", "--target=dataflow")
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "image"], check=True)
    path = {"PATH": f"{tmp_path}/image/bin:{os.environ['PATH']}", "PYTHONPATH": ""}
    layers = [line.removeprefix("RUN ") for line in (folder / "Dockerfile").read_text().splitlines() if line.startswith("RUN ")]
    assert any("--require-hashes" in layer for layer in layers)
    for command in [*layers, "tiebeam describe ingest"]:
        ran = subprocess.run(
            ["sh", "-ec", command], cwd=folder, env=os.environ | path, capture_output=True, text=True, timeout=900, check=False
        )
        assert ran.returncode == 0, f"{command}\n{ran.stdout}{ran.stderr}"
    assert "--source" in ran.stdout
