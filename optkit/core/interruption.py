"""How a process ends on Ctrl-C, SIGTERM or the end of its terminal: soon, with its child processes, in one line."""

from __future__ import annotations

import os
import select
import signal
import threading
from logging import WARNING
from types import FrameType

import psutil

from optkit.core.logs import complain

GRACE_S = 10.0  # for the main thread to leave a call into C++
SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated (SIGTERM)",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
}


class Interruption(BaseException):
    """A signal that ends the process. Not a KeyboardInterrupt: libraries answer that with messages of their own.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Ending:
    """Turns the signals into :class:`Interruption` in the main thread from here on, and ends the child processes.

    A signal that the process was started to ignore (``nohup``) stays ignored. When the main thread does not end soon,
    or a second signal comes, the process ends without it: what is on disk is whole at any moment.
    """

    def __init__(self) -> None:
        self._said = threading.Event()
        self._reading, writing = os.pipe()
        os.set_blocking(writing, False)
        taken = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        for number in taken:
            signal.signal(number, _raise)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=lambda: _restore(taken))
        threading.Thread(target=self._watch, name="optkit-signals", daemon=True).start()

    def farewell(self, error: Interruption) -> int:
        """Says in one line how the process ends, and in which stage; gives the exit code."""
        self._say(error.number, "".join(f" {note}" for note in getattr(error, "__notes__", [])[:1]))
        end_children()
        return 128 + error.number

    def _say(self, number: int, where: str) -> None:
        if not self._said.is_set():
            self._said.set()
            complain(f"{SIGNALS[signal.Signals(number)]}{where or '; the same command continues from here'}", WARNING)

    def _watch(self) -> None:
        number = self._signal(None)
        end_children()
        self._signal(GRACE_S)
        self._say(number, "")
        end_children()
        os._exit(128 + number)

    def _signal(self, seconds: float | None) -> int:
        """The next of the signals, or 0 if none comes in time."""
        while select.select([self._reading], [], [], seconds)[0]:
            number = os.read(self._reading, 1)[0]
            if number in SIGNALS:
                return number
        return 0


def end_children() -> None:
    """Kills the child processes, theirs included."""
    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def _raise(number: int, frame: FrameType | None) -> None:
    raise Interruption(number)


def _restore(taken: list[signal.Signals]) -> None:
    """A forked child ends as any process does; its signals are no news for its parent."""
    signal.set_wakeup_fd(-1)
    for number in taken:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
