"""How a process ends on a signal: soon, with its child processes, in one line; a training saves its state first."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from logging import WARNING
from types import FrameType

from optkit.core.logs import complain
from optkit.core.processes import is_lost, of_run

LOOK_S = 0.05
TOLD_S = 1.0  # between the processes of a run, which a scheduler tells one after the other
GRACE_S = 10.0  # for the main thread to leave a call into C++
SAVE_S = 120.0  # for a training to come to the end of its step and save
SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated (SIGTERM)",
    signal.SIGHUP: "the terminal was closed (SIGHUP)",
    signal.SIGUSR1: "asked to stop (SIGUSR1)",
}
SAVED_FIRST = (signal.SIGTERM, signal.SIGUSR1)  # what schedulers send before they take the machine away


class Interruption(BaseException):
    """A signal that ends the process. Not a KeyboardInterrupt: libraries answer that with messages of their own.

    Args:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Saving:
    """Whether work is on that saves its state when a signal asks it to, the signal, and whether the work ends now."""

    active = False
    asked = 0
    ending = False


_saving = _Saving()


@contextmanager
def saves_when_asked() -> Iterator[None]:
    """Inside it SIGTERM and SIGUSR1 interrupt nothing: the work looks for `asked` between its steps, saves, and raises.

    A signal that was not looked for is raised at the end of the block.

    Raises:
        Interruption: at the end.
    """
    _saving.active, _saving.asked = True, 0
    try:
        yield
    except Interruption:
        _saving.ending = True
        raise
    except Exception as error:
        # a signal came, too: it is not left to the next training. torchrun sends one when a process dies
        if (number := _saving.asked) and not is_lost(error):
            _saving.ending = True
            raise Interruption(number) from error
        raise
    finally:
        _saving.active = False
    if number := _saving.asked:
        _saving.asked, _saving.ending = 0, True
        raise Interruption(number)


@contextmanager
def ends_at_once() -> Iterator[None]:
    """Inside it, within `saves_when_asked`, a signal ends the work at once: it does what cannot be saved.

    Raises:
        Interruption: a signal came before.
    """
    active, _saving.active = _saving.active, False
    if active and _saving.asked:
        raise Interruption(_saving.asked)
    try:
        yield
    finally:
        _saving.active = active


def asked() -> int:
    """The signal that asks the work inside `saves_when_asked` to save its state and end; 0 for none."""
    return _saving.asked


def told() -> int:
    """The signal that came to this process, which another has ended, or comes within a second; 0 for none.

    Schedulers tell the processes of a run one after the other. From here on no signal is raised.
    """
    _saving.active = _saving.ending = True
    deadline = time.monotonic() + TOLD_S
    while not _saving.asked and time.monotonic() < deadline:
        time.sleep(LOOK_S)
    return _saving.asked


def heard(number: int) -> None:
    """Another process of the run was asked by a signal, which is as if this one was."""
    _saving.asked = _saving.asked or number


def ends_now() -> None:
    """The process is at its end: from here on SIGTERM and SIGUSR1 change nothing, and Ctrl-C ends it without a word."""
    _saving.ending = True
    for number in SAVED_FIRST:  # Python's own end would put the handlers back that kill
        signal.signal(number, signal.SIG_IGN)


class Ending:
    """Turns the signals into :class:`Interruption` in the main thread from here on, and ends the child processes.

    A signal that the process was started to ignore (``nohup``) stays ignored. Only the first signal is raised. When the
    main thread does not end soon, or a second signal comes, the process ends without it: what is on disk is whole at
    any moment. While a training saves, more of what it saves for changes nothing: schedulers and torchrun may both
    send it. Ctrl-C ends at once.
    """

    def __init__(self) -> None:
        _saving.ending = False
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
        ends_now()
        # where the signal came to another process, nothing else watches over the end of this one
        last = threading.Timer(GRACE_S, os._exit, [exit_code(error.number)])
        last.daemon = True
        last.start()
        code = self._say(error.number, "".join(f" {note}" for note in getattr(error, "__notes__", [])[:1]))
        end_children()
        return code

    def _say(self, number: int, where: str) -> int:
        """Says it, unless it is said, here or in another process of the run; gives the exit code."""
        if self._said.is_set():
            return exit_code(number)
        self._said.set()
        speaks, code = of_run().last_word(exit_code(number))
        if speaks:
            complain(f"{SIGNALS[signal.Signals(number)]}{where or '; the same command continues from here'}", WARNING)
        return code

    def _watch(self) -> None:
        number = self._signal(None)
        if _saving.active and number in SAVED_FIRST:
            self._signal(SAVE_S, besides=SAVED_FIRST)
        else:
            end_children()
            self._signal(GRACE_S)
        code = self._say(number, "")
        end_children()
        os._exit(code)

    def _signal(self, seconds: float | None, besides: tuple[int, ...] = ()) -> int:
        """The next of the signals, or 0 if none comes in time."""
        while select.select([self._reading], [], [], seconds)[0]:
            number = os.read(self._reading, 1)[0]
            if number in SIGNALS and number not in besides:
                return number
        return 0


def exit_code(number: int) -> int:
    """Of a process that a signal ends; for those that schedulers send alike, 143."""
    return 128 + (signal.SIGTERM if number in SAVED_FIRST else number)


def end_children() -> None:
    """Kills the child processes, theirs included."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue


def _raise(number: int, frame: FrameType | None) -> None:
    if _saving.active and number in SAVED_FIRST:
        heard(number)
    elif not _saving.ending:
        _saving.ending = True
        raise Interruption(number)


def _restore(taken: list[signal.Signals]) -> None:
    """A forked child ends as any process does; its signals are no news for its parent."""
    signal.set_wakeup_fd(-1)
    for number in taken:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
