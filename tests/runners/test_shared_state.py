"""No step with state shares its input with another: Flink's runner names a step after its input, and numbers those that share one.

The number is another each time that the graph is translated, so a job that goes on from a savepoint may find the state of one step under
the name of its neighbour, and then it is gone without a word (docs/runners.md).
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.common import DoFnSignature
from confluent_kafka.admin import AdminClient, NewTopic

from tiebeam import registry
from tiebeam.delivery import Delivery
from tiebeam.options import parse
from tiebeam.pipelines import _runner

SOURCE = ["--source=kafka", "--source_event_time=at", "--source_schema=user varchar, page varchar, at timestamptz, amount double"]
SINK = ["--sink=parquet", "--sink_path=out"]
PIPELINES = {
    "rollup": [*SOURCE, *SINK, "--by=page", "--window=1h", "--aggregates=n=count()", "--late=parquet", "--late_path=late"],
    "sessions": [*SOURCE, *SINK, "--event=page", "--funnel=a,b", "--funnel_sink=parquet", "--funnel_sink_path=funnel"],
}


class Consumers(beam.pipeline.PipelineVisitor):
    """Which steps read each PCollection, and which of them have state or read by themselves what can be split."""

    def __init__(self) -> None:
        self.of: dict[Any, list[str]] = defaultdict(list)
        self.stateful: set[str] = set()

    def visit_transform(self, node: Any) -> None:
        for given in node.inputs:
            self.of[given].append(node.full_label)
        if isinstance(node.transform, beam.ParDo):
            signature = DoFnSignature(node.transform.fn)
            if signature.is_stateful_dofn() or signature.is_splittable_dofn():
                self.stateful.add(node.full_label)

    def shared(self) -> dict[str, list[str]]:
        """Steps with state, and who else reads what they read."""
        return {step: readers for readers in self.of.values() for step in readers if step in self.stateful and len(readers) > 1}


def consumers(p: beam.Pipeline) -> Consumers:
    visitor = Consumers()
    p.visit(visitor)
    return visitor


@pytest.mark.parametrize("name", PIPELINES)
def test_no_step_with_state_shares_its_input(name, kafka, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    admin = AdminClient({"bootstrap.servers": kafka.servers})
    admin.create_topics([NewTopic(name, 1)])[name].result(30)
    module = registry.pipeline(name)
    argv = [*PIPELINES[name], f"--source_servers={kafka.servers}", f"--source_topics={name}"]
    options, _ = parse(module.Options, argv, registry.connector, _runner.known_flags)
    p = beam.Pipeline(options=PipelineOptions(["--runner=PrismRunner", "--experiments=prism_disable_sdf_split"]))
    with Delivery(p, "rejected", run_id="r"):
        module.build(p, options)
    found = consumers(p)
    assert len(found.stateful) > 2
    assert found.shared() == {}


def test_a_shared_input_is_found():
    class Remembers(beam.DoFn):
        SEEN = beam.transforms.userstate.BagStateSpec("seen", beam.coders.VarIntCoder())

        def process(self, element, seen=beam.DoFn.StateParam(SEEN)):
            yield element

    p = beam.Pipeline(runner="FnApiRunner")
    pairs = p | beam.Create([(1, 1)])
    _ = pairs | "Remember" >> beam.ParDo(Remembers())
    assert consumers(p).shared() == {}
    _ = pairs | "Look" >> beam.Map(print)
    assert consumers(p).shared() == {"Remember": ["Remember", "Look"]}
