import pytest
from click.testing import CliRunner

from optkit.cli import cli
from optkit.report.doctor import print_doctor

PEAKS = {"fp32": 123.4, "int8": 2345.6, "memory_gb_s": 12.3, "read_gb_s": 10.0}


@pytest.fixture
def doctor(monkeypatch, tmp_path):
    """Runs the command on a machine of this test alone, whose measuring is faked; gives the measurings, too."""
    measured = []
    monkeypatch.setenv("OPTKIT_CACHE", str(tmp_path / "cache"))
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


@pytest.mark.parametrize("outside", [[], ["torch 2.16.0 (>=2.13,<2.15)", "datasets 6.1.0 (>=5.0,<6)"]])
def test_versions_that_are_not_supported_are_one_row(monkeypatch, capsys, outside):
    monkeypatch.setattr("optkit.report.doctor.unsupported", lambda: outside)
    print_doctor()
    rows = [row for row in capsys.readouterr().out.splitlines() if "not supported" in row]
    assert [row.split("not supported")[1].strip() for row in rows] == ([", ".join(outside)] if outside else [])
