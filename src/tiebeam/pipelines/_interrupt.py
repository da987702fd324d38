"""What an interrupt does to a job: it ends at once and leaves nothing half done, or, a stream on this machine, is drained first."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from tiebeam.delivery import Delivery
from tiebeam.runners import DRAIN


@contextmanager
def interruptible(delivery: Delivery, before_drain: Callable[[], Any] | None = None) -> Iterator[Callable[[], None]]:
    """Ends the process at an interrupt or a termination, with 130, after what was staged or spilled is removed.

    A local runner has threads of its own that do not stop; publishing is crash-safe, so ending the process is too. A local stream is
    drained by the first of them: its sources end where they are, every window is closed and all is published.
    """

    def stop(signum: int, frame: Any) -> None:
        if before_drain and not DRAIN.is_set():
            print("\ndraining: what has come is published, then it ends; once more to end at once", file=sys.stderr, flush=True)
            before_drain()
            DRAIN.set()
            return
        delivery.discard()
        shutil.rmtree(delivery.pipeline.local_tempdir, ignore_errors=True)  # Beam would, had it come to its end
        print("\ninterrupted; nothing was published that is not whole", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(130)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    before = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}

    def listen() -> None:
        for s in before:
            signal.signal(s, stop)

    listen()
    try:
        yield listen
    finally:
        for s, handler in before.items():
            with suppress(TypeError):
                signal.signal(s, handler)
