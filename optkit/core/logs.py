"""Where messages go: the terminal, as text or as JSON lines, and the log file of a run."""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from optkit.core.compat.loggers import NOISY
from optkit.core.errors import OptkitError, UserError, did_you_mean

RUN_LOG = "run.log"
TEXT, JSON = "text", "json"
LOGGER = logging.getLogger("optkit")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Messages:
    """What the terminal shows of a command's messages.

    Attributes:
        quiet: warnings and errors only; what a command prints to standard output stays.
        format: ``text``, or ``json``: one JSON object a line.
        debug: messages for developers, too.
        of: whose messages they are, where several jobs share the terminal.
    """

    quiet: bool = False
    format: str = TEXT
    debug: bool = False
    of: str = ""

    def __post_init__(self) -> None:
        if self.format not in (TEXT, JSON):
            fix = did_you_mean(self.format, (TEXT, JSON))
            raise UserError(f"no format '{self.format}'", key="log", value=self.format, fix=fix)

    def begin(self) -> None:
        """Sends optkit's messages to standard error from here on, in this process."""
        handler = self._handler()
        handler.setLevel(logging.WARNING if self.quiet else logging.NOTSET)
        LOGGER.handlers[:] = [handler]
        LOGGER.propagate = False
        LOGGER.setLevel(logging.DEBUG if self.debug else logging.INFO)
        if self.format == JSON:
            logging.captureWarnings(True)
            logging.getLogger().handlers[:] = [handler]
        if not self.debug:
            # their warnings speak to torch's developers; torch resets their parent's level when it is imported
            for name in NOISY:
                logging.getLogger(name).setLevel(logging.ERROR)

    def _handler(self) -> logging.Handler:
        if self.format == JSON:
            handler: logging.Handler = logging.StreamHandler()
            handler.setFormatter(_JsonLines())
        elif sys.stderr.isatty() and not self.of:
            from rich.logging import RichHandler

            from optkit.core.progress import stderr_console

            handler = RichHandler(console=stderr_console(), show_path=False, show_level=False)
        else:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter(f"%(asctime)s {self.of}%(message)s", "%H:%M:%S"))
        return handler


def shows_bars() -> bool:
    """Whether progress bars go with the messages: on a terminal that shows them all as text."""
    if not sys.stderr.isatty():
        return False
    plain = (type(h) is logging.StreamHandler or h.level > logging.INFO for h in LOGGER.handlers)
    return not any(plain)


def complain(text: str, level: int = logging.ERROR) -> None:
    """The one line about why a command ends."""
    if any(isinstance(handler.formatter, _JsonLines) for handler in LOGGER.handlers):
        LOGGER.log(level, text)
    else:
        print(f"error: {text}" if level == logging.ERROR else text, file=sys.stderr)


@contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Appends optkit's messages to a file for the time of the block, and why the block failed if it does.

    An error that nobody expected has its traceback there. Where nobody has configured logging, progress is written to
    the file, too, and still not to the terminal.
    """
    level = LOGGER.level
    if LOGGER.getEffectiveLevel() > logging.INFO and not LOGGER.hasHandlers():
        LOGGER.setLevel(logging.INFO)
    handler = _LogFile(path)
    LOGGER.addHandler(handler)
    log.debug("process %d on %s: %s", os.getpid(), socket.gethostname(), " ".join(sys.argv))
    try:
        yield
    except BaseException as error:
        handler.handle(_why(error))
        raise
    finally:
        LOGGER.removeHandler(handler)
        LOGGER.setLevel(level)
        handler.close()


def _why(error: BaseException) -> logging.LogRecord:
    """The record of a failure: with its traceback, unless optkit itself says what is wrong."""
    own = isinstance(error, OptkitError)
    expected = not isinstance(error, Exception) or (own and error.__cause__ is None)
    trace = None if expected else (type(error), error, error.__traceback__)
    level = logging.ERROR if isinstance(error, Exception) else logging.WARNING
    text = str(error) if own else f"ended by {type(error).__name__}: {error}"
    return LOGGER.makeRecord(LOGGER.name, level, __file__, 0, "%s", (text,), trace)


class _LogFile(logging.Handler):
    """Plain lines with date and level, each written at once; a file that cannot be written is named once."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.broken = path, False
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        if self.broken:
            return
        try:
            with open(self.path, "ab", buffering=0) as file:
                file.write(f"{self.format(record)}\n".encode())
        except OSError as error:
            self.broken = True
            log.warning("cannot write to %s: %s", self.path, error.strerror)


class _JsonLines(logging.Formatter):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")
        found = {"time": time, "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            found["traceback"] = self.formatException(record.exc_info)
        return json.dumps(found)
