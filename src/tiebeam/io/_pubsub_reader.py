"""Reads a subscription: several pulls at once into a bounded buffer, and acknowledgements when it is safe.

Pulls are single calls and not a stream: each gives up to 1,000 messages as one answer, nothing is sent that was not asked for, and the
deadlines are ours. What was pulled is held, its deadline extended, until it is acknowledged: with the runner's word that a bundle is
durable, or, where the runner keeps nothing (Prism, batch), when the whole job has published. What a dead process held comes again.

A partition is a lane: a share of the pulls, since a subscription has no parts. Its position names the reader and how many messages of the
lane it had handed out; a reader that is new has nothing to go on with, for the service knows what was not acknowledged.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tiebeam.errors import ConfigError, TransientError
from tiebeam.io._endless import EndlessSource, PartitionReader, Piece, Progress
from tiebeam.io._payloads import EventTime
from tiebeam.io._pubsub_client import Connection, is_for_now, told
from tiebeam.io._pubsub_messages import batch_of
from tiebeam.rows import MAX_BATCH_ROWS
from tiebeam.runners import DRAIN

BLOCK_BYTES = 8 << 20
PULL_MESSAGES = 1000
PULL_SECS = 5.0
PULLERS = 2
BUFFERED_MESSAGES = 20_000
BUFFERED_BYTES = 64 << 20
FILL_SECS = 0.05
QUIET_SECS = 1.0
CALL_IDS = 1000
BOUNDED_PATIENCE_SECS, PATIENCE_SECS = 60.0, 300.0
LATER_MESSAGES = 50_000


@dataclass(frozen=True)
class Subscription(EndlessSource):
    """What is read, how messages are told from one another, and when they are acknowledged."""

    connection: Connection
    name: str
    lanes: int = 1
    deadline_secs: int = 60
    id_attribute: str | None = None
    event_time: EventTime | None = None
    at_end: bool = False
    """Whether nothing is acknowledged before `settle`."""
    quiet_secs: float | None = None
    """Bounded: the end is reached when nothing has come for so long."""
    before: int | None = None
    """Bounded: what was published at this time or later, in microseconds, is left in the subscription."""
    disorder: int = 0
    lag: int = 0
    bounded: bool = False

    def partitions(self) -> Sequence[str]:
        return [f"{self.name}/{lane}" for lane in range(self.lanes)]

    def number(self, partition: str) -> int:
        return int(partition.rpartition("/")[2])

    def reader(self, partitions: Sequence[str]) -> SubscriptionReader:
        return SubscriptionReader(self)


class Leases:
    """The messages of a subscription that this process holds: their deadlines are extended, until they are acknowledged or let go."""

    def __init__(self, connection: Connection, name: str, deadline_secs: int):
        self.name = name
        self.deadline_secs = deadline_secs
        self.client = connection.subscriber()
        self._lock = threading.Condition()
        self._held: dict[str, None] = {}
        self._due: dict[str, None] = {}
        self._kept: list[str] = []
        self._keeper: threading.Thread | None = None

    def take(self, ids: list[str]) -> None:
        """Holds messages that were just pulled; the subscription's own deadline may be short."""
        self._extend(ids, self.deadline_secs)
        with self._lock:
            self._held.update(dict.fromkeys(ids))
            self._wake()

    def acknowledge(self, ids: Iterable[str]) -> None:
        """Has messages acknowledged soon, by a thread of its own."""
        with self._lock:
            self._due.update(dict.fromkeys(ids))
            self._wake()

    def keep(self, ids: Iterable[str]) -> None:
        """Keeps messages until `settle`: they are in a job that must not lose them, and have no other home."""
        with self._lock:
            self._kept += ids

    def settle(self, secs: float) -> int:
        """Acknowledges what was kept; the number of messages that were not within so many seconds."""
        with self._lock:
            kept, self._kept = self._kept, []
        self.acknowledge(kept)
        until = time.monotonic() + secs
        with self._lock:
            while self._due and time.monotonic() < until:
                self._lock.wait(0.1)
            return len(self._due)

    def let_go(self, ids: Iterable[str]) -> None:
        """Holds messages no more; they are delivered again when their deadline is over."""
        with self._lock:
            for one in ids:
                self._held.pop(one, None)

    def give_back(self, ids: list[str]) -> None:
        """Has messages delivered again at once."""
        self.let_go(ids)
        self._extend(ids, 0)

    def _wake(self) -> None:
        if self._keeper is None:
            self._keeper = threading.Thread(target=self._keep, name="pubsub deadlines", daemon=True)
            self._keeper.start()
        self._lock.notify_all()

    def _keep(self) -> None:
        extended = time.monotonic()
        while True:
            with self._lock:
                if not self._due:
                    self._lock.wait(1.0)
                due = list(self._due)
                if not due and not self._held:
                    self._keeper = None
                    return
            for chunk in _chunks(due):
                self._acknowledge(chunk)
            if time.monotonic() > extended + self.deadline_secs / 3:
                extended = time.monotonic()
                with self._lock:
                    held = list(self._held)
                self._extend(held, self.deadline_secs)

    def _acknowledge(self, ids: list[str]) -> None:
        """Acknowledges; what is refused for now is tried again, what is refused for good will be delivered again, and known."""
        from google.api_core.exceptions import GoogleAPIError

        again: set[str] = set()
        try:
            self.client.acknowledge(subscription=self.name, ack_ids=ids, timeout=PULL_SECS, retry=None)
        except GoogleAPIError as e:
            answers = getattr(e, "metadata", None)  # exactly-once: an answer for each
            if answers:
                again = {one for one in ids if answers.get(one, "").startswith("TRANSIENT")}
            elif is_for_now(e):
                again = set(ids)
        with self._lock:
            for one in ids:
                if one not in again:
                    self._due.pop(one, None)
                    self._held.pop(one, None)
            self._lock.notify_all()
        if again:
            time.sleep(0.5)

    def _extend(self, ids: list[str], secs: int) -> None:
        from google.api_core.exceptions import GoogleAPIError

        for chunk in _chunks(ids):
            try:
                self.client.modify_ack_deadline(
                    subscription=self.name, ack_ids=chunk, ack_deadline_seconds=secs, timeout=PULL_SECS, retry=None
                )
            except GoogleAPIError:
                continue  # what is not extended comes again, and is known


def _chunks(ids: list[str]) -> Iterator[list[str]]:
    return (ids[i : i + CALL_IDS] for i in range(0, len(ids), CALL_IDS))


_leases: dict[tuple[Connection, str], Leases] = {}
_leases_lock = threading.Lock()


def leases_of(source: Subscription) -> Leases:
    """What this process holds of a subscription, by whichever reader."""
    with _leases_lock:
        key = source.connection, source.name
        if key not in _leases:
            _leases[key] = Leases(source.connection, source.name, source.deadline_secs)
        return _leases[key]


@dataclass
class _Lane:
    """What was handed out of a lane, and is neither acknowledged nor let go: the number and the id of each message."""

    read: int = 0
    out: deque[tuple[int, str]] = field(default_factory=deque)


class SubscriptionReader(PartitionReader):
    """Pulls in threads of its own."""

    def __init__(self, source: Subscription):
        self.source = source
        self.name = uuid.uuid4().hex
        self.leases = leases_of(source)
        self.client = source.connection.subscriber()
        self.lanes: dict[str, _Lane] = {}
        self.later: list[str] = []
        self.closed = False
        self._lock = threading.Condition()
        self._waiting: deque[Any] = deque()
        self._bytes = 0
        self._over = False
        self._trouble: Exception | None = None
        self._came = 0.0
        """When something came last, or it was first known that nothing does."""
        self._well = 0.0
        """When the service answered last."""
        self._threads: list[threading.Thread] = []

    # ---- positions

    def seek(self, positions: dict[str, Any]) -> None:
        self.lanes = {name: self.lanes.get(name) or _Lane() for name in positions}
        if not self._threads:
            self._well = time.monotonic()
            self._threads = [threading.Thread(target=self._pull, name=f"pubsub pull {n}", daemon=True) for n in range(PULLERS)]
            for thread in self._threads:
                thread.start()

    def commit(self, positions: dict[str, Any]) -> None:
        safe: list[str] = []
        with self._lock:
            for name, position in positions.items():
                if position is None or position["reader"] != self.name or (lane := self.lanes.get(name)) is None:
                    continue
                while lane.out and lane.out[0][0] <= position["read"]:
                    safe.append(lane.out.popleft()[1])
        if safe:
            (self.leases.keep if self.source.at_end else self.leases.acknowledge)(safe)

    # ---- reading

    def poll(self, order: Sequence[str]) -> Piece | None:
        with self._lock:
            if not self._waiting and not self._over:
                self._lock.wait(FILL_SECS)
            self._raise()
            if not self._waiting:
                return None
            taken: list[Any] = []
            size = 0
            while self._waiting and len(taken) < MAX_BATCH_ROWS and size < BLOCK_BYTES:
                taken.append(self._waiting.popleft())
                size += len(taken[-1].message.data)
            self._bytes -= size
            self._lock.notify_all()
            lane = self.lanes[order[0]]
            for received in taken:
                lane.read += 1
                lane.out.append((lane.read, received.ack_id))
        rows = batch_of(taken, self.source.name, self.source.id_attribute, self.source.event_time)
        return Piece(order[0], {"reader": self.name, "read": lane.read}, (rows,))

    def progress(self, partition: str) -> Progress:
        with self._lock:
            if DRAIN.is_set() and not self.source.bounded:
                self._over = True  # what is still in the subscription stays there
            if self._waiting or self._trouble:
                return Progress.BEHIND
            if self._over:
                return Progress.FINISHED if self.source.bounded else Progress.CAUGHT_UP
            now = time.monotonic()
            answering = now < self._well + PULL_SECS + QUIET_SECS
            quiet = self._came and answering and now > self._came + (self.source.quiet_secs or QUIET_SECS)
            if self.source.bounded:
                self._over = bool(quiet) or len(self.later) > LATER_MESSAGES
                return Progress.FINISHED if self._over else Progress.BEHIND
            return Progress.CAUGHT_UP if quiet else Progress.BEHIND

    def _raise(self) -> None:
        if isinstance(self._trouble, ConfigError):
            raise self._trouble
        patience = BOUNDED_PATIENCE_SECS if self.source.bounded else PATIENCE_SECS
        if self._trouble is not None and time.monotonic() > self._well + patience:
            raise TransientError(str(self._trouble))

    # ---- the threads

    def _pull(self) -> None:
        pause = 0.1
        while self._has_room():
            began = time.monotonic()
            try:
                messages = self._pulled()
            except Exception as e:
                if self._heard(e):
                    return
                time.sleep(pause)
                pause = min(5.0, pause * 2)
                continue
            pause = 0.1
            self._take(messages, began)

    def _pulled(self) -> list[Any]:
        from google.api_core.exceptions import DeadlineExceeded
        from google.pubsub_v1.types import PullResponse

        asked = {"subscription": self.source.name, "max_messages": PULL_MESSAGES}
        try:
            answer = self.client.pull(request=asked, timeout=PULL_SECS, retry=None)
        except DeadlineExceeded:  # nothing came, or nobody answers: a call that does not wait tells
            answer = self.client.pull(request={**asked, "return_immediately": True}, timeout=PULL_SECS, retry=None)
        return list(PullResponse.pb(answer).received_messages)

    def _has_room(self) -> bool:
        with self._lock:
            while not self._over and not self.closed and (len(self._waiting) > BUFFERED_MESSAGES or self._bytes > BUFFERED_BYTES):
                self._lock.wait(1.0)
            return not self._over and not self.closed

    def _take(self, messages: list[Any], began: float) -> None:
        ids = [received.ack_id for received in messages]
        if ids:
            self.leases.take(ids)
        later = []
        if self.source.before is not None:
            later = [r for r in messages if r.message.publish_time.ToMicroseconds() >= self.source.before]
            messages = [r for r in messages if r.message.publish_time.ToMicroseconds() < self.source.before]
        with self._lock:
            self._trouble, self._well = None, time.monotonic()
            refused = self._over or self.closed
            if not refused:
                self.later += [received.ack_id for received in later]
                self._waiting.extend(messages)
                self._bytes += sum(len(received.message.data) for received in messages)
                if messages or not self._came:
                    self._came = time.monotonic() if messages else began
                self._lock.notify_all()
        if refused and ids:
            self.leases.give_back(ids)

    def _heard(self, error: Exception) -> bool:
        """Keeps what went wrong; says whether that is the end."""
        trouble = told(error, f"the subscription {self.source.name}", "subscription")
        with self._lock:
            self._trouble = trouble
            self._lock.notify_all()
            return isinstance(trouble, ConfigError) or self._over or self.closed

    # ---- the rest

    def close(self) -> None:
        with self._lock:
            self.closed = True
            back = [received.ack_id for received in self._waiting] + self.later
            self._waiting.clear()
            out = [one for lane in self.lanes.values() for _, one in lane.out]
            read_to_end = self._over and (self.source.bounded or self.source.at_end)
            self._lock.notify_all()
        if read_to_end:
            self.leases.keep(out)
        else:
            self.leases.let_go(out)
        if back:
            self.leases.give_back(back)
