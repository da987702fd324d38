"""Ingest: any source to any sink, under a contract.

    tiebeam run ingest --source=jsonl --source_path='in/*.jsonl' --sink=parquet --sink_path=out/

Without a contract one is inferred from the first rows of the source; `tiebeam plan` shows it, and saves it with
`--write_contract=FILE`. Rows that do not fit go to the dead letters and can be replayed once the contract is mended.
`--from` and `--to` hold a run to an interval of event time.
"""

from __future__ import annotations

import sys
from typing import Any

from tiebeam.connectors import Sink, Source
from tiebeam.errors import ConfigError, Problem
from tiebeam.options import option, role
from tiebeam.pipelines import _interval, _job
from tiebeam.transforms.conform import Conform, Contract

BY_CURSOR = True
"""Each row is taken by itself, so a run may be given the new ones only."""


class Options(_interval.IntervalOptions):
    """What `ingest` reads, what it holds the rows to, and where they go."""

    source: Source = role("source", help="Where rows come from", example="jsonl")
    sink: Sink = role("sink", help="Where rows go", example="parquet")
    contract: str | None = option(
        None,
        help="Data contract that rows must meet (Open Data Contract Standard, YAML); by default inferred from the first rows",
        example="shop.odcs.yaml",
        place="files",
    )

    def files(self):
        return [self.contract] if self.contract else []


def contract_of(options: Options) -> Contract:
    """The contract given, or one inferred from the first rows of the source."""
    if options.contract:
        return Contract.load(options.contract)
    sample = options.source.sample(_job.SAMPLE_ROWS)
    if sample is None:
        raise ConfigError(Problem("holds no rows to infer a contract from", "--source", "give a --contract, or a source with rows"))
    return Contract.infer(sample, "ingest")


def build(p: Any, options: Options) -> None:
    contract = contract_of(options)
    source = options.source.with_types(contract.schema) if options.contract and hasattr(options.source, "with_types") else options.source
    _job.check_rows(options.source, *_interval.checks(options))
    rows = _interval.within(p | "Read" >> source, options)
    conformed = rows | "Conform" >> Conform(contract)
    conformed | "Write" >> options.sink


def run(argv: list[str] | None = None) -> int:
    """Runs `ingest` from its flags and returns the exit code."""
    return _job.run("ingest", argv)


if __name__ == "__main__":
    sys.exit(run())
