"""`aerostat doctor`: which probes work on this machine, what each costs, what mends the others."""

from typing import TYPE_CHECKING

import click

from aerostat.options import json_option, talk_options
from aerostat.output import emit_json, plain
from aerostat.progress import progress_on_stderr
from tracer.trace.errors import ExitCode

if TYPE_CHECKING:
    from tracer.diagnosis.checks import Check

CHOSEN = ">"


@click.command("doctor")
@click.option("--pid", type=click.IntRange(min=1), help="Put the probes into this running QEMU.")
@json_option
@talk_options
def command(pid: int | None, as_json: bool, quiet: bool, verbose: bool) -> ExitCode:
    """Predict every way to every probe from this machine's files, then prove it by attaching it.

    System-call probes are proven and timed with calls of this process, the probes of QEMU's balloon
    handlers on a handler of its own, or with --pid in that QEMU. Whatever is attached is taken away
    again. Without privileges there are predictions alone. Exit code 6 means that nothing can be
    recorded here.

    \b
    Examples:
      aerostat doctor
      aerostat doctor --pid 4242
      aerostat doctor --json
    """
    from tracer.diagnosis.checks import able
    from tracer.diagnosis.doctor import diagnose

    with progress_on_stderr(verbose=verbose, quiet=quiet) as progress:
        checks = diagnose(pid, progress)
    can_record = able(checks)
    if as_json:
        emit_json({"can_record": can_record, "checks": plain(checks)})
    else:
        draw(checks)
        conclude(can_record)
    return ExitCode.OK if any(can_record.values()) else ExitCode.MISSING_PRIVILEGE


def draw(checks: "list[Check]") -> None:
    """Draw one table per group, and below them each reason once with what mends it."""
    from aerostat import render

    notes: dict[tuple[str, str], int] = {}
    for group in dict.fromkeys(check.group for check in checks):
        rows = [_row(check, notes) for check in checks if check.group == group]
        columns = ("<point", "<way", "<works", "a hit", "others", "")
        render.draw(group, columns, _without_repetition(rows))
    for (reason, remedy), number in notes.items():
        render.say(f"[{number}] {reason}")
        if remedy:
            render.say(f"    try: {remedy}")
    render.say()
    render.say(
        f"{CHOSEN} is the way that record goes. a hit: what one costs the traced VM, with + for an "
        "empty program.\nothers: what it adds to every system call of every other process."
    )


def _row(check: "Check", notes: dict[tuple[str, str], int]) -> tuple[str, ...]:
    from aerostat import render

    note = ""
    if check.reason and not check.proven:
        note = f"[{notes.setdefault((check.reason, check.remedy), len(notes) + 1)}]"
    cost = render.ns(check.cost_ns)
    if check.cost_ns is None and check.floor_ns is not None:
        cost = f"{render.ns(check.floor_ns)}+"
    mark = f"{CHOSEN} " if check.chosen else "  "
    way = mark + check.way if check.way else ""
    costs = (cost, render.ns(check.bystander_ns)) if check.way else ("", "")
    return (check.name, way, _works(check), *costs, note)


def _works(check: "Check") -> str:
    """Say in a word what is known; a prediction ends in a question mark."""
    from aerostat import render

    if check.proven:
        return "\N{CHECK MARK} fired" if check.fired else "\N{CHECK MARK}"
    if check.proven is False:
        return "\N{BALLOT X} no"
    words = {
        True: "\N{CHECK MARK} likely",
        False: "\N{BALLOT X} unlikely",
        None: render.NOT_OBSERVED,
    }
    return words[check.predicted]


def _without_repetition(rows: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Leave a point's name out where the row above has it."""
    names = ["", *(row[0] for row in rows)]
    return [
        ("" if row[0] == above else row[0], *row[1:])
        for row, above in zip(rows, names, strict=False)
    ]


def conclude(can_record: "dict[str, bool | None]") -> None:
    """Say what can be recorded."""
    from aerostat import render

    words = {True: "can be recorded here", False: "cannot be recorded here", None: "was not tried"}
    names = {
        "qemu": "a QEMU, requests and discards",
        "other_vmm": "any VMM, discards alone",
        "guest": "this guest's driver",
    }
    for name, works in can_record.items():
        render.say(f"{names[name]}: {words[works]}")
