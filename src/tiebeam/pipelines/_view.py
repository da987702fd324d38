"""The live view of a job that never ends: how fast, how far behind, what is published, and what is not as it should be."""

from __future__ import annotations

import time
from collections import deque

from tiebeam import steps, terminal

SPEED_SECS = 5.0
PARTITIONS_SHOWN = 8


class View:
    """Tells how a job of this process is doing, from the tally and the gauges of its steps."""

    def __init__(self, labels: list[str], reads: tuple[str, ...]):
        self.order = {label: i for i, label in enumerate(labels)}
        self.reads = reads
        self.seen: deque[tuple[float, int]] = deque()

    def lines(self, elapsed: float) -> list[str]:
        """The first line sums up; then how far the sources are; then one line per step that has counted rows."""
        counts: dict[str, dict[str, int]] = {}
        for (step, name), amount in steps.tally().items():
            counts.setdefault(step, {})[name] = amount
        gauges = steps.gauges()
        read = sum(c.get(steps.ROWS_OUT, 0) + c.get(steps.ROWS_REJECTED, 0) for step, c in counts.items() if steps.ROWS_IN not in c)

        def total(name: str) -> int:
            return sum(c.get(name, 0) for c in counts.values())

        staged, published = total("commits_staged"), total("commits_published")
        head = (
            f"  {terminal.seconds(elapsed):>9}  read {read:,}  {self._speed(elapsed, read):,.0f} rows/s  late {total('rows_late'):,}  "
            f"rejected {total(steps.ROWS_REJECTED):,}  commits published {published:,}, waiting {staged - published:,}"
        )
        shown = sorted(counts.items(), key=lambda item: self.order.get(item[0], len(self.order)))
        return [head, *self._sources(gauges), *(_step_line(step, c) for step, c in shown)]

    def _speed(self, elapsed: float, read: int) -> float:
        self.seen.append((elapsed, read))
        while len(self.seen) > 2 and self.seen[0][0] < elapsed - SPEED_SECS:
            self.seen.popleft()
        (begin, before), (end, after) = self.seen[0], self.seen[-1]
        return (after - before) / (end - begin) if end > begin else 0.0

    def _sources(self, gauges: dict[tuple[str, str], int]) -> list[str]:
        lines = []
        for (step, name), millis in sorted(gauges.items()):
            if name != "watermark":
                continue
            lags = {n.removeprefix("lag "): lag for (s, n), lag in gauges.items() if s == step and n.startswith("lag ")}
            worst = sorted(lags, key=lambda partition: -lags[partition])[:PARTITIONS_SHOWN]
            told = "  ".join(f"{partition} {lags[partition]:,}" for partition in sorted(worst))
            more = f"  and {len(lags) - len(worst)} more" if len(lags) > len(worst) else ""
            lines.append(f"{'':>11}  {step[:24]}: watermark {_watermark(millis)}; behind by {sum(lags.values()):,}: {told}{more}")
        return lines


def _watermark(millis: int) -> str:
    """A watermark as its age, or as a date when it is of another time."""
    if millis < -(1 << 53):
        return "not known yet"
    if millis > 1 << 53:
        return "at the end"
    age = time.time() - millis / 1000
    if abs(age) < 48 * 3600:
        return f"{age:,.1f} s old"
    return time.strftime("at %Y-%m-%d %H:%M", time.gmtime(millis / 1000))


def _step_line(step: str, counted: dict[str, int]) -> str:
    into, out, rejected = (counted.get(name, 0) for name in (steps.ROWS_IN, steps.ROWS_OUT, steps.ROWS_REJECTED))
    return f"{'':>13}{step[:32]:<32} in {into:>12,}  out {out:>12,}  rejected {rejected:>7,}"
