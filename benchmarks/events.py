"""Events to measure with: JSON lines of 208 bytes each, the same for the same number, one a millisecond and up to 4 s out of order."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

LINE_BYTES = 208
MOST = 80_000_000  # one a millisecond, within one day

CATEGORIES = [
    "bakery", "books", "camping", "clothes", "coffee", "electronics", "fish", "flowers", "fruit", "furniture", "games", "garden",
    "grocery", "jewellery", "kitchen", "music", "pets", "shoes", "sports", "toys",
]  # fmt: skip
KINDS = ["buy", "click", "refund", "search", "view"]
WORDS = [
    "about", "after", "again", "along", "began", "being", "board", "bring", "build", "carry", "cause", "check", "child", "clean",
    "clear", "close", "color", "could", "count", "cover",
]  # fmt: skip

_HEAD = b'{"id":1000000000,"ts":"2026-01-01T00:00:00.000Z","user":"u000000","amount":100.00,"note":"'
_NOTE_WORDS = 6
_CHUNK = 250_000


def write(path: Path, events: int) -> Path:
    """Writes a file of events, unless it is there already."""
    if events > MOST:
        raise ValueError(f"at most {MOST:,} events")
    if not path.exists() or path.stat().st_size != events * LINE_BYTES:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(".draft")
        random = np.random.default_rng(7)
        with draft.open("wb") as file:
            for first in range(0, events, _CHUNK):
                file.write(_lines(random, first, min(_CHUNK, events - first)).tobytes())
        draft.replace(path)
    return path


def _lines(random: np.random.Generator, first: int, rows: int) -> np.ndarray:
    templates = np.array([np.frombuffer(_template(c, k), np.uint8) for c in CATEGORIES for k in KINDS])
    lines = templates[random.integers(0, len(templates), rows)]
    number = np.arange(first, first + rows)
    millis = number + random.integers(0, 4000, rows)
    time = _HEAD.index(b"00:00:00.000")
    _digits(lines, _HEAD.index(b"1000000000") + 1, 9, number)
    _digits(lines, time, 2, millis // 3_600_000)
    _digits(lines, time + 3, 2, millis // 60_000 % 60)
    _digits(lines, time + 6, 2, millis // 1000 % 60)
    _digits(lines, time + 9, 3, millis % 1000)
    _digits(lines, _HEAD.index(b"u000000") + 1, 6, (random.pareto(1.2, rows) * 1000).astype(np.int64) % 1_000_000)
    amount = _HEAD.index(b"100.00")
    _digits(lines, amount, 3, random.integers(100, 1000, rows))
    _digits(lines, amount + 4, 2, random.integers(0, 100, rows))
    words = np.array([np.frombuffer(f"{w:6}".encode(), np.uint8) for w in WORDS])
    lines[:, len(_HEAD) : len(_HEAD) + 6 * _NOTE_WORDS] = words[random.integers(0, len(words), (rows, _NOTE_WORDS))].reshape(rows, -1)
    return lines


def _template(category: str, kind: str) -> bytes:
    tail = f'","category":"{category}","kind":"{kind}","pad":"'.encode()
    line = _HEAD + b" " * (6 * _NOTE_WORDS) + tail
    return line + b"." * (LINE_BYTES - len(line) - 3) + b'"}\n'


def _digits(lines: np.ndarray, at: int, width: int, values: np.ndarray) -> None:
    for place in range(at + width - 1, at - 1, -1):
        lines[:, place] = ord("0") + values % 10
        values = values // 10


if __name__ == "__main__":
    write(Path(sys.argv[2]), int(sys.argv[1]))
