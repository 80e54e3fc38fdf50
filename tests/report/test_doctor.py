import pytest
from click.testing import CliRunner

from optkit.cli import cli

PEAKS = {"fp32": 123.4, "int8": 2345.6, "memory_gb_s": 12.3}


@pytest.fixture
def doctor(monkeypatch, tmp_path):
    """Runs the command on a machine of this test alone, whose measuring is faked; gives the measurings, too."""
    measured = []
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("optkit.cli._show_tracebacks", lambda debug: None)
    monkeypatch.setattr("optkit.report.doctor.print_doctor", lambda: None)
    monkeypatch.setattr("optkit.measure.peaks.measure_peaks", lambda threads: measured.append(threads) or PEAKS)

    def run(*arguments):
        done = CliRunner().invoke(cli, ["doctor", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return " ".join(done.output.split())

    return run, measured


def test_peaks_are_measured_once_and_again_on_demand(doctor):
    run, measured = doctor
    assert run() == ""
    assert measured == []
    text = run("--peaks")
    assert "fp32 123.4 billion operations/s" in text
    assert "int8 2,345.6 billion operations/s" in text
    assert "bf16 no kernels here" in text
    assert "copying memory 12.3 GB/s" in text
    assert "measured now" in text
    assert "measured before" in run("--peaks")
    assert len(measured) == 1
    assert "measured now" in run("--peaks", "--remeasure")
    assert "measured now" in run("--remeasure")
    assert len(measured) == 3
