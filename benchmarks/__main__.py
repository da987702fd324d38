"""Runs the benchmarks, from the root of the repository: `python -m benchmarks [NAME …]`.

Tables go to standard output, progress to standard error; `--save` writes the tables to benchmarks/results too.
"""

from __future__ import annotations

import argparse
import importlib

NAMES = (
    "windowed_sum", "kafka", "nexmark", "sessions", "deduplicate", "as_of_join", "trail", "skew", "keyed_memory",
    "json_to_parquet", "bigquery", "ingest", "startup", "coder",
)  # fmt: skip
ONLY_BY_NAME = ("on_flink", "steady")  # fetch a Flink, and 1 GB of PyFlink; take half an hour each


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(NAMES)}; all by default; or {', '.join(ONLY_BY_NAME)}")
    parser.add_argument("--events", default="1_000_000,8_000_000", help="numbers of events, with commas between")
    parser.add_argument("--full", action="store_true", help="windowed_sum and keyed_memory with 80 M events too, for memory: 17 GB of disk")
    parser.add_argument("--times", type=int, default=3, help="runs of each, of which the median counts")
    parser.add_argument("--save", action="store_true", help="write the tables to benchmarks/results")
    given = parser.parse_args()
    if unknown := set(given.names) - {*NAMES, *ONLY_BY_NAME}:
        parser.error(f"there is no benchmark {', '.join(unknown)}")
    sizes = [int(size.replace("_", "")) for size in given.events.split(",")]
    for name in given.names or NAMES:
        larger = [80_000_000] if given.full and name in ("windowed_sum", "keyed_memory") else []
        importlib.import_module(f"benchmarks.{name}").bench(sizes + larger, given.times, given.save)


if __name__ == "__main__":
    main()
