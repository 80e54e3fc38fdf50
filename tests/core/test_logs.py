"""Where messages go: the terminal as text or JSON, and the log file of a run."""

import json
import logging
import re
import subprocess
import sys

import pytest

from optkit.core.errors import UserError
from optkit.core.logs import Messages, complain, log_file

SAY = """
import logging, warnings
from optkit.core.logs import Messages, complain
Messages({options}).begin()
log = logging.getLogger("optkit.pipeline")
log.debug("a debug line")
log.info("an info line")
log.warning("a warning")
warnings.warn("from a library")
complain("it ends")
"""


def _said(options):
    return subprocess.run(
        [sys.executable, "-c", SAY.format(options=options)], capture_output=True, text=True, check=True
    ).stderr


def test_quiet_leaves_warnings_and_errors():
    said = _said("quiet=True")
    assert "a warning" in said
    assert "error: it ends" in said
    assert "info line" not in said
    assert "info line" in _said("")


def test_json_is_one_object_a_line():
    lines = [json.loads(line) for line in _said("format='json'").splitlines()]
    assert [(line["level"], line["message"]) for line in lines if "library" not in line["message"]] == [
        ("INFO", "an info line"), ("WARNING", "a warning"), ("ERROR", "it ends"),
    ]  # fmt: skip
    assert any("from a library" in line["message"] for line in lines)
    assert all(line["time"] and line["logger"] for line in lines)


def test_an_unknown_format_is_refused():
    with pytest.raises(UserError, match="log: no format 'yaml'"):
        Messages(format="yaml")


def test_the_log_file_has_dates_levels_and_the_traceback_of_an_unexpected_error(tmp_path, monkeypatch):
    logger = logging.getLogger("optkit")
    monkeypatch.setattr(logger, "level", logging.INFO)
    path = tmp_path / "run.log"

    def fail(error):
        with log_file(path):
            logger.info("working")
            raise error

    for error in (
        ZeroDivisionError("by hand"),
        UserError("7 is no good", key="deed", fix="use 8"),
        KeyboardInterrupt(),
    ):
        with pytest.raises(type(error)):
            fail(error)
    text = path.read_text()
    assert len(re.findall(r"^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    working$", text, re.M)) == 3
    assert re.search(r"ERROR   ended by ZeroDivisionError: by hand\nTraceback .*raise error", text, re.S)
    assert "ERROR   deed: 7 is no good (use 8)\n" in text
    assert "WARNING ended by KeyboardInterrupt" in text
    assert text.count("Traceback") == 1


def test_complain_goes_to_standard_error(capsys):
    complain("it ends")
    complain("interrupted", logging.WARNING)
    assert capsys.readouterr().err == "error: it ends\ninterrupted\n"
