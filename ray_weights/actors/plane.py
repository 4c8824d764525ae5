"""The data plane of a transfer actor: one thread that drives every receive of this process.

It alone touches the transport, so no lock is needed. Everything else reaches it through its inbox; what it wants from
the actor's event loop goes through Wishes. It sleeps until the next thing is due: no busy loop, no fixed pause.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from ray_weights.actors.receive import Receive
from ray_weights.errors import DeadlineExceeded
from ray_weights.threads import name_this_thread
from ray_weights.transports.transport import ReadStatus, ReadTicket, Transport

log = logging.getLogger(__name__)
T = TypeVar("T")
_LONGEST_SLEEP = 0.5
_LATE_SECONDS = 0.1


class DataPlane:
    """Owns the transport and the receives under way."""

    def __init__(self, transport: Transport, verify_threads: int) -> None:
        self.transport = transport
        self.verifiers = ThreadPoolExecutor(
            verify_threads, thread_name_prefix="verify", initializer=name_this_thread, initargs=("rw-verify",)
        )
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._receives: set[Receive] = set()
        self._late: list[tuple[list[ReadTicket], Future[None]]] = []
        """Reads that were given up on, done when they have ended."""
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="data-plane", daemon=True)
        self._thread.start()

    def post(self, work: Callable[[], None]) -> None:
        """Run `work` on the data plane's thread, soon. Callable from any thread."""
        self._inbox.put(work)

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """As post(), with the result or its exception."""
        done: Future[T] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as e:
                done.set_exception(e)

        self.post(run)
        return done

    def call(self, work: Callable[[], T], timeout: float = 60.0) -> T:
        """As submit(), and wait for it. Raises DeadlineExceeded; the work is done nevertheless."""
        try:
            return self.submit(work).result(timeout)
        except TimeoutError as e:
            raise DeadlineExceeded(f"the data plane did not answer within {timeout:.0f} s") from e

    def add(self, receive: Receive) -> None:
        """Start to drive a receive. On the data plane's thread."""
        self._receives.add(receive)

    def remove(self, receive: Receive) -> None:
        self._receives.discard(receive)

    def give_up(self, tickets: Sequence[ReadTicket]) -> Future[None]:
        """Done, on the data plane's thread, once these reads have ended, however late that is. Called there, too."""
        ended: Future[None] = Future()
        self._late.append((list(tickets), ended))
        return ended

    def stop(self) -> None:
        """End the thread. Reads under way are left alone: only the end of the process is a safe end for them."""

        def end() -> None:
            self._stopping = True

        self.post(end)
        self._thread.join(timeout=5)
        self.verifiers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        name_this_thread("rw-data-plane")
        try:
            self._loop()
        except BaseException:
            # Without this thread the actor would answer and do nothing. Ray starts it anew, and its shards are found.
            log.critical("the data plane has failed: the process ends", exc_info=True)
            logging.shutdown()
            os._exit(1)

    def _loop(self) -> None:
        sleep = _LONGEST_SLEEP
        while not self._stopping:
            self._take_in(sleep)
            now = time.monotonic()
            sleep = _LONGEST_SLEEP
            for receive in list(self._receives):
                try:
                    due = receive.step(now)
                except Exception as e:  # one broken receive must not stop the others: it ends with its error
                    log.exception("the receive of %s failed", receive.name)
                    self.remove(receive)
                    receive.failed(e)
                    continue
                if due is not None:
                    sleep = min(sleep, max(0.0, due - time.monotonic()))
            if self._late:
                self._release_late()
                sleep = min(sleep, _LATE_SECONDS)

    def _release_late(self) -> None:
        late, self._late = self._late, []
        for tickets, ended in late:
            for ticket in list(tickets):
                if self.transport.poll(ticket).status is not ReadStatus.PENDING:
                    self.transport.release(ticket)
                    tickets.remove(ticket)
            if tickets:
                self._late.append((tickets, ended))
            else:
                ended.set_result(None)

    def _take_in(self, sleep: float) -> None:
        """Wait for work at most `sleep` seconds, then do all that has come."""
        try:
            work = self._inbox.get(timeout=sleep) if sleep > 0 else self._inbox.get_nowait()
        except queue.Empty:
            return
        while True:
            try:
                work()
            except Exception:
                log.exception("work on the data plane failed")
            try:
                work = self._inbox.get_nowait()
            except queue.Empty:
                return
