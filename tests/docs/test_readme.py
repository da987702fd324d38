"""The README's library example runs as it stands, and its commands exist."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

from support import services
from tiebeam import cli

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_library_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    rows = [{"at": f"2026-01-01T0{i % 3}:30:00Z", "shop": "abc"[i % 3], "kind": "sale" if i % 2 else "return", "net": i} for i in range(60)]
    lines = [json.dumps(row) for row in rows]
    lines.insert(7, '{"at": "2026-01-01T00:00:00Z", "shop": "a", "kind": "sale", "net": ')
    Path("in/rows.jsonl").write_text("\n".join(lines))
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)

    exec(compile(code, "README.md", "exec"), {})

    found = duckdb.sql("SELECT shop, sales, gross FROM read_parquet('out/*.parquet') ORDER BY shop").fetchall()
    wanted = [
        (shop, len(nets), sum(nets) * 1.19)
        for shop in "abc"
        for nets in [[row["net"] for row in rows if row["shop"] == shop and row["kind"] == "sale"]]
    ]
    assert [(s, n) for s, n, _ in found] == [(s, n) for s, n, _ in wanted]
    assert all(abs(float(f[2]) - w[2]) < 1e-9 for f, w in zip(found, wanted, strict=True))
    kept = [json.loads(line) for file in Path("out.rejected").glob("*.jsonl") for line in file.read_text().splitlines()]
    assert [letter["reason"] for letter in kept] == ["malformed"]


def test_from_pubsub_into_bigquery_as_it_can_be_pasted(tmp_path, monkeypatch):
    if not shutil.which("bq"):
        pytest.skip("bq of the Google Cloud SDK is not on this machine")
    for service in ("pubsub", "bigquery"):
        services.obtain(service)
    for name in list(os.environ):
        if "EMULATOR_HOST" in name:
            monkeypatch.delenv(name)
    commands = next(block for block in re.findall(r"```\n(.*?)```", README, re.S) if "bq query" in block)
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "CLOUDSDK_CONFIG": str(tmp_path / "gcloud")}
    there = {"cwd": tmp_path, "env": env, "capture_output": True, "text": True, "timeout": 500}
    try:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", commands], **there)
    finally:
        subprocess.run(["tiebeam", "lab", "down"], **there)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"\|\s+1000 \|\s+2500.0 \|", done.stdout), done.stdout


def test_verbs_named_in_the_readme_exist():
    verbs = set(re.findall(r"^tiebeam (\w+)", README, re.M))
    assert verbs and all(f"tiebeam {verb}" in cli.USAGE for verb in verbs)
