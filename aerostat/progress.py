"""Where the progress of long work is shown: always on stderr, never in the way of a result."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tracer.trace.progress import Progress, silent

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


@contextmanager
def progress_on_stderr(*, verbose: bool, quiet: bool = False) -> Iterator[Progress]:
    """Give work something to report to.

    A terminal gets moving bars (without colour when NO_COLOR is set). Anything else gets one line
    per phase with `verbose`, and otherwise nothing.

    Args:
        verbose: Write one line per phase where there is no terminal.
        quiet: Report nothing at all, terminal or not.

    Yields:
        The function to call with phase, done and total.
    """
    if quiet:
        yield silent
    elif sys.stderr.isatty():
        with _rich_bars() as bars:
            yield _Bars(bars)
    elif verbose:
        yield _Lines()
    else:
        yield silent


def _rich_bars() -> "RichProgress":
    # Imported late: `aerostat record` in an emulated guest must not pay for it.
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[count]}", markup=False),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    )


class _Bars:
    """One bar per phase on a terminal."""

    def __init__(self, bars: "RichProgress") -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, phase: str, done: int = 0, total: int | None = None) -> None:
        count = f"{done}/{total}" if total is not None else (str(done) if done else "")
        task = self._tasks.get(phase)
        if task is None:
            task = self._bars.add_task(phase, total=total, count=count)
            self._tasks[phase] = task
        self._bars.update(task, completed=done, total=total, count=count)


class _Lines:
    """One plain line when a phase first begins; counts would flood a log file."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def __call__(self, phase: str, done: int = 0, total: int | None = None) -> None:
        # Recorders report from their own threads, so phases take turns: each is named once.
        if phase not in self._seen:
            self._seen.add(phase)
            # Nobody may be reading any more: that is no reason to end the work.
            with suppress(OSError):
                print(f"aerostat: {phase}", file=sys.stderr, flush=True)
