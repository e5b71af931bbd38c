"""The engine in a thread of its own: any thread submits and cancels, and hears of its tokens by a call."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from ossia.engine.engine import Engine, Stats
from ossia.engine.request import Output, Request
from ossia.errors import BusyError

log = logging.getLogger(__name__)

Deliver = Callable[[Output], None]
"""Called on the engine's thread with what a request has new; must neither wait nor raise."""


@dataclass(frozen=True, slots=True)
class _Submitted:
    id: int
    request: Request
    deliver: Deliver


class Worker:
    """Steps its engine while there is work, and sleeps when there is none.

    The last output of every request that was accepted has `finish` set, always, and exactly once.
    """

    def __init__(self, engine: Engine) -> None:
        """The worker alone uses the engine from now on."""
        self._engine = engine
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="ossia-engine", daemon=True)
        # Under the condition's lock:
        self._submitted: list[_Submitted] = []
        self._cancelled: list[int] = []
        self._next_id = 0
        self._deadline: float | None = None
        """When what still runs is cancelled, by time.monotonic; None: not closing."""
        # The engine's thread alone:
        self._own_ids: dict[int, int] = {}
        """The engine's id → the worker's."""
        self._engine_ids: dict[int, int] = {}
        self._delivers: dict[int, Deliver] = {}

    # ---------------------------------------------------------------- any thread

    def start(self) -> None:
        """Begin. Requests may be submitted before."""
        self._thread.start()

    def submit(self, request: Request, deliver: Deliver) -> int:
        """Queue a request; returns its id.

        Raises RequestError for a bad prompt, BusyError where the queue is full or the worker is closing.
        """
        self._engine.check(request)
        with self._condition:
            if self._deadline is not None:
                raise BusyError("the engine is closing: ask again when it is back")
            waiting = len(self._submitted) + self._engine.num_waiting
            if waiting >= self._engine.max_waiting:
                raise BusyError(f"{waiting} requests are waiting already: try again later")
            self._next_id += 1
            self._submitted.append(_Submitted(self._next_id, request, deliver))
            self._condition.notify()
            return self._next_id

    def cancel(self, request_id: int) -> None:
        """End a request before the next step. Ids that nobody has, or that have ended, are no error."""
        with self._condition:
            self._cancelled.append(request_id)
            self._condition.notify()

    @property
    def is_open(self) -> bool:
        """Whether requests are accepted: it is not closing, and has not failed."""
        return self._deadline is None

    def stats(self) -> Stats:
        """How things stand."""
        return self._engine.stats()

    def close(self, *, drain: float = 0.0) -> None:
        """Accept nothing more, give what was accepted `drain` seconds to end, cancel the rest, and wait for that."""
        with self._condition:
            if self._deadline is None:
                self._deadline = time.monotonic() + drain
            self._condition.notify()
        if self._thread.ident is None:
            self._thread.start()  # What was submitted hears of its end there.
        self._thread.join()

    # ---------------------------------------------------------------- the engine's thread

    def _run(self) -> None:
        try:
            while self._take():
                for engine_id, output in self._engine.step():
                    self._tell(engine_id, output)
            self._engine.check_integrity()  # Whatever leaked while it ran is told of in the log.
        except Exception:  # The boundary: whoever waits must hear of it.
            log.exception("the engine failed, and its thread ends")
            with self._condition:
                self._deadline = 0.0
                for submitted in self._submitted:
                    self._delivers[submitted.id] = submitted.deliver
            for deliver in self._delivers.values():
                deliver(Output(finish="error", error="the engine failed: its log says why"))

    def _take(self) -> bool:
        """Wait for something to do, and hand on what other threads asked for; False at the end."""
        with self._condition:
            while True:
                for submitted in self._submitted:
                    engine_id = self._engine.accept(submitted.request)
                    self._own_ids[engine_id], self._engine_ids[submitted.id] = submitted.id, engine_id
                    self._delivers[submitted.id] = submitted.deliver
                self._submitted.clear()
                if self._deadline is not None and time.monotonic() >= self._deadline:
                    self._cancelled.extend(self._engine_ids)
                for request_id in self._cancelled:
                    if request_id in self._engine_ids:
                        self._engine.cancel(self._engine_ids[request_id])
                self._cancelled.clear()
                if self._engine.has_work:
                    return True
                if self._deadline is not None:
                    return False
                self._condition.wait()

    def _tell(self, engine_id: int, output: Output) -> None:
        own_id = self._own_ids[engine_id]
        deliver = self._delivers[own_id]
        if output.finish is not None:
            del self._own_ids[engine_id], self._engine_ids[own_id], self._delivers[own_id]
        try:
            deliver(output)
        except Exception:  # The boundary: one caller's mistake is not the others'.
            log.exception("what request %d has new could not be delivered: it is cancelled", own_id)
            self._engine.cancel(engine_id)
