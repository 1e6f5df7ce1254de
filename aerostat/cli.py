"""The one command, and the only place where an error becomes text and an exit code.

Verbs live in aerostat/verbs, one file each, and are imported only when they are used.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import Final

import click

from aerostat import __version__
from aerostat.output import printable
from aerostat.stop import Terminated
from aerostat.streams import STDOUT, complete_streams, let_go_of_stdout
from tracer.trace.errors import AerostatError, ExitCode

VERBS: Final = {
    "doctor": "aerostat.verbs.doctor",
    "vms": "aerostat.verbs.vms",
    "record": "aerostat.verbs.record",
    "top": "aerostat.verbs.top",
    "lab": "aerostat.verbs.lab",
    "show": "aerostat.verbs.show",
    "whatif": "aerostat.verbs.whatif",
    "replay": "aerostat.verbs.replay",
    "compare": "aerostat.verbs.compare",
    "import": "aerostat.verbs.import_side",
}
"""Verb -> module that holds its `command`. The order is the order of a day's work."""

INTERRUPTED: Final = 130
"""128 + SIGINT, as shells report it."""
TERMINATED: Final = 143
"""128 + SIGTERM, as shells report it."""
BROKEN_PIPE: Final = 141
"""128 + SIGPIPE, as shells report it."""


class LazyGroup(click.Group):
    """A group that imports a verb's module when the verb is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name every verb, in the order of VERBS."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb, or None where there is no such verb."""
        module = VERBS.get(cmd_name)
        if module is None:
            return None
        command = importlib.import_module(module).command
        assert isinstance(command, click.Command)
        return command


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="aerostat")
def cli() -> None:
    """Record what a VM's memory balloon really does, replay it, find a better way.

    Results go to stdout, all talk to stderr.

    \b
    Examples:
      aerostat doctor
      aerostat record --pid 4242 -o host.balloon
      aerostat top
      aerostat show host.balloon
      aerostat whatif host.balloon
      aerostat replay host.balloon -o results.json
      aerostat compare before.json after.json

    \b
    Exit codes:
      0 ok                    4 inconclusive
      1 failure               5 capture incomplete
      2 wrong usage           6 missing privilege or kernel feature
      3 regression            130 interrupted, 143 terminated
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and turn whatever happens into an exit code.

    Args:
        argv: Arguments after the program's name; the process's own when None.

    Returns:
        The exit code (tracer.trace.errors.ExitCode, or 128 + signal).
    """
    complete_streams()
    try:
        # Outside standalone mode click returns what the verb returned, or the code of ctx.exit().
        result = cli.main(args=argv, prog_name="aerostat", standalone_mode=False)
        sys.stdout.flush()
        code = result if isinstance(result, int) else ExitCode.OK
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except AerostatError as error:
        _say(error)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        # click makes an Abort of whatever is a KeyboardInterrupt.
        terminated = isinstance(error.__cause__, Terminated)
        print(f"aerostat: {'terminated' if terminated else 'interrupted'}", file=sys.stderr)
        code = TERMINATED if terminated else INTERRUPTED
    except SystemExit:
        # No verb exits; click and rich do so where stdout is a pipe that nobody reads any more.
        let_go_of_stdout()
        code = BROKEN_PIPE
    except MemoryError as error:
        _say(_too_little_memory(error))
        code = ExitCode.FAILURE
    except OSError as error:
        if error.filename == STDOUT:
            let_go_of_stdout()
        if error.filename == STDOUT and isinstance(error, BrokenPipeError):
            code = BROKEN_PIPE
        else:
            _say(_as_aerostat_error(error))
            code = ExitCode.FAILURE
    return int(code)


def _say(error: AerostatError) -> None:
    print(f"aerostat: error: {printable(str(error))}", file=sys.stderr)


def _too_little_memory(error: MemoryError) -> AerostatError:
    return AerostatError(
        "there is not enough memory for this",
        reason=str(error) or "the operating system gave no more",
        remedy="free memory, raise this process's limit, or work on a machine that has more",
    )


def _as_aerostat_error(error: OSError) -> AerostatError:
    """Name the object of a system call that nobody below foresaw to fail."""
    denied = isinstance(error, PermissionError)
    return AerostatError(
        f"cannot use {error.filename}" if error.filename else "the operating system refused",
        reason=error.strerror or str(error),
        remedy="run as a user who may, or with sudo" if denied else "mend that and try again",
    )
