"""`aerostat record --prove`: what a killed recorder leaves, counted here and now."""

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from aerostat import render
from aerostat.output import emit_json
from tracer.record.prove import CaptureKill, Proof, prove, prove_capture
from tracer.trace.errors import AerostatError, ExitCode
from tracer.trace.progress import Progress

NS_PER_S = 1_000_000_000
RECORDED_NS = 5 * NS_PER_S
"""How long a VM is recorded before its recorder is killed, where the user does not say."""


def prove_record(
    output: Path | None, pid: int | None, duration_ns: int | None, progress: Progress, as_json: bool
) -> ExitCode:
    """Kill writers of a known stream, and with a pid a recorder of that VM; say what was left.

    Args:
        output: A bundle that might be recorded: the proof is made in its directory. In a temporary
            one where None. Nothing of it stays.
        pid: A VMM whose recorder is killed too.
        duration_ns: How long that one is recorded before.
        progress: Told how many were killed.
        as_json: Write one JSON document in place of tables.

    Returns:
        OK if at most the batch in hand was lost each time, INCONCLUSIVE if no kill tore a batch or
        the VM sent no request, FAILURE otherwise.

    Raises:
        AerostatError: The directory cannot be used, or a recorder ends before it is killed.
    """
    with _workplace(output) as directory:
        proof = prove(directory, progress)
        kill = None
        if pid is not None:
            progress("record")
            kill = _kill_recorder(directory, pid, duration_ns or RECORDED_NS)
    if as_json:
        emit_json(_document(proof, kill))
    else:
        _draw(proof, kill)
    sound = all(kill.holds for kill in proof.kills) and (kill is None or kill.gap_free)
    if not sound:
        return ExitCode.FAILURE
    if not proof.inside or (kill is not None and not kill.kept_rows):
        return ExitCode.INCONCLUSIVE
    return ExitCode.OK


@contextlib.contextmanager
def _workplace(output: Path | None) -> Iterator[Path]:
    try:
        with tempfile.TemporaryDirectory(
            prefix=".aerostat-prove-", dir=None if output is None else output.parent
        ) as place:
            yield Path(place)
    except OSError as problem:
        raise AerostatError(
            f"cannot prove anything in {output.parent if output else tempfile.gettempdir()}",
            reason=problem.strerror or str(problem),
            remedy="give a path in a directory that exists and can be written, with -o",
        ) from problem


def _kill_recorder(directory: Path, pid: int, duration_ns: int) -> CaptureKill:
    bundle, ready = directory / "vm.balloon", directory / "ready"
    command = [sys.executable, "-m", "aerostat", "record", "--pid", str(pid), "--quiet"]
    command += ["-o", str(bundle), "--ready-file", str(ready)]
    return prove_capture(command, bundle, ready, duration_ns / NS_PER_S)


def _document(proof: Proof, kill: CaptureKill | None) -> dict[str, object]:
    return {
        "batch_rows": proof.batch_rows,
        "kills": [
            {
                "written_rows": item.written_rows,
                "in_hand_rows": item.in_hand_rows,
                "kept_rows": item.kept_rows,
                "lost_rows": item.lost_rows,
                "torn_bytes": item.torn_bytes,
                "sound": item.sound,
                "holds": item.holds,
            }
            for item in proof.kills
        ],
        "inside": proof.inside,
        "holds": proof.holds,
        "vm": None
        if kill is None
        else {
            "kept_rows": kill.kept_rows,
            "torn_bytes": kill.torn_bytes,
            "gap_free": kill.gap_free,
            "unseen_ns": kill.unseen_ns,
        },
    }


def _draw(proof: Proof, kill: CaptureKill | None) -> None:
    columns = ("kill", "rows written", "in hand", "kept", "lost", "torn bytes", "<")
    rows = [
        (
            str(number),
            render.count(item.written_rows),
            render.count(item.in_hand_rows),
            render.count(item.kept_rows),
            render.count(item.lost_rows),
            render.count(item.torn_bytes),
            "holds" if item.holds else "DOES NOT HOLD",
        )
        for number, item in enumerate(proof.kills, 1)
    ]
    render.draw("Writers killed by SIGKILL, and what salvage kept", columns, rows)
    batch = f"{proof.batch_rows:,} rows"
    if not all(item.holds for item in proof.kills):
        render.say("More than the batch in hand was lost: do not trust a recorder on this disk.")
    elif proof.inside:
        render.say(
            f"{proof.inside} of {len(rows)} fell within a batch. At most it was lost: {batch}."
        )
    else:
        render.say(
            "No kill fell within a batch: nothing is proven. Try again on a machine at rest."
        )
    if kill is not None:
        gaps = "without a gap" if kill.gap_free else "WITH GAPS"
        unseen = render.ns(kill.unseen_ns)
        render.say(
            f"The VM's recorder was killed too: {kill.kept_rows:,} requests kept, {gaps}, "
            f"{kill.torn_bytes:,} torn bytes; the last one ended {unseen} before the kill."
        )
