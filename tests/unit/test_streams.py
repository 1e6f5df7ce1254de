"""Standard streams that the caller closed, that are full, or that cannot say every character."""

import pytest

from tests.unit.command import AEROSTAT, ROOT, run

PLAIN = str(ROOT / "traces/plain.balloon")
WHATIF = ("whatif", PLAIN, "-s", "qemu")


def through(redirection: str) -> dict[str, object]:
    """The real command behind a shell's redirection."""
    return {"command": ["sh", "-c", f'exec "$@" {redirection}', "sh", *AEROSTAT]}


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_reason_to_fail(redirection: str) -> None:
    done = run(WHATIF, **through(redirection))
    assert (done.returncode, done.stderr) == (0, "")
    assert bool(done.stdout) == (">&-" not in redirection.replace("2>&-", ""))


def test_what_an_encoding_lacks_is_replaced() -> None:
    """A pause of microseconds, a tick, a line: the tables have more than ASCII."""
    code = "from aerostat import cli, render\ncli.complete_streams()\nrender.say('pause ✓ 5')"
    done = run([], command=[AEROSTAT[0], "-c", code], env={"PYTHONIOENCODING": "ascii"})
    assert (done.returncode, done.stdout) == (0, "pause ? 5\n")


@pytest.mark.parametrize(("form", "unbuffered"), [((), ""), (("--json",), ""), ((), "1")])
def test_a_full_stdout_is_named(form: tuple[str, ...], unbuffered: str) -> None:
    done = run([*WHATIF, *form], env={"PYTHONUNBUFFERED": unbuffered}, **through(">/dev/full"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "aerostat: error: cannot use stdout",
        "  reason: No space left on device",
        "  try:    mend that and try again",
    ]
