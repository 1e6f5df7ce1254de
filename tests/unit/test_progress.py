"""Where progress is shown, and how a capture is told to stop."""

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aerostat.progress import progress_on_stderr
from aerostat.stop import stop_on_signal

ROOT = Path(__file__).parents[2]
WORK = """
from aerostat.progress import progress_on_stderr
with progress_on_stderr(verbose=False) as progress:
    for done in range(5):
        progress("replay", done, 5)
    progress("verify")
print("result")
"""


def test_silence_away_from_a_terminal(capsys) -> None:
    with progress_on_stderr(verbose=False) as progress:
        progress("replay", 1, 5)
    assert capsys.readouterr() == ("", "")


def test_verbose_names_each_phase_once(capsys) -> None:
    with progress_on_stderr(verbose=True) as progress:
        for done in range(5):
            progress("record", done)
            progress("inflate", done, 5)
    assert capsys.readouterr() == ("", "aerostat: record\naerostat: inflate\n")


def test_quiet_wins(capsys) -> None:
    with progress_on_stderr(verbose=True, quiet=True) as progress:
        progress("record")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("no_color", [None, "1"])
def test_a_terminal_gets_bars_on_stderr_only(no_color: str | None) -> None:
    ours, theirs = pty.openpty()
    environment = dict(os.environ, TERM="xterm", COLUMNS="100")
    environment.pop("NO_COLOR", None)
    if no_color is not None:
        environment["NO_COLOR"] = no_color
    done = subprocess.run(
        [sys.executable, "-c", WORK],
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=environment,
        cwd=ROOT,
        check=True,
    )
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.stdout == b"result\n"
    assert "replay" in shown
    assert ("\x1b[3" in shown) == (no_color is None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_stops_and_the_second_interrupts(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signal() as (stop, _):
        assert not stop.is_set()
        os.kill(os.getpid(), number)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_terminal_that_hangs_up_stops_and_interrupts_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # these tests may run under nohup
    try:
        with stop_on_signal() as (stop, _):
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.is_set()
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_nohup_started_goes_on() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_on_signal() as (stop, _):
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop.is_set()
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
