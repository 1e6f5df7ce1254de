"""`record --prove` really kills, and would say so if more were lost than the batch in hand."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from tests.unit.command import ROOT, refused, run
from tracer.record import prove
from tracer.record.prove import Kill, Proof, prove_capture
from tracer.record.prove_stream import BATCH_ROWS, batch_of
from tracer.trace.errors import AerostatError, ExitCode
from tracer.trace.schema import Side
from tracer.trace.writer import TraceWriter


def test_killed_writers_lose_at_most_the_batch_in_hand(tmp_path):
    done = run(["record", "--prove", "--json", "-q", "-o", tmp_path / "x.balloon"])
    document = json.loads(done.stdout)
    kills = document["kills"]
    assert len(kills) >= 5
    for kill in kills:
        assert kill["holds"], kill
        assert kill["sound"], kill
        whole = (kill["written_rows"], kill["written_rows"] + kill["in_hand_rows"])
        assert kill["kept_rows"] in whole
        assert kill["in_hand_rows"] in (0, document["batch_rows"])
        assert kill["lost_rows"] == sum(whole) - kill["written_rows"] - kill["kept_rows"]
    # Whether a kill falls within a batch is chance; that it is told is not.
    assert document["inside"] == sum(kill["torn_bytes"] > 0 for kill in kills)
    assert document["holds"] == (document["inside"] > 0)
    assert done.returncode == (0 if document["holds"] else ExitCode.INCONCLUSIVE)
    assert document["vm"] is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("rows", "holds"),
    [
        ((10, 5, 10), True),
        ((10, 5, 15), True),
        ((10, 0, 10), True),
        ((10, 5, 9), False),
        ((10, 0, 9), False),
        ((10, 5, 16), False),
    ],
)
def test_what_holds(rows, holds):
    kill = Kill(*rows, torn_bytes=1, sound=True)
    assert kill.holds == holds
    assert Proof((kill,)).holds == holds
    assert not Kill(*rows, torn_bytes=1, sound=False).holds
    assert not Proof((Kill(*rows, torn_bytes=0, sound=True),)).holds


@pytest.mark.parametrize("change", ["value", "order", "half a batch", "closed", "none"])
def test_rows_that_are_not_those_of_the_stream(tmp_path, change):
    batches = [batch_of(0), batch_of(1)]
    if change == "value":
        column = batches[1].schema.get_field_index("pop_ns")
        other = pa.array([7] * BATCH_ROWS, pa.int64())
        columns = [other if i == column else item for i, item in enumerate(batches[1].columns)]
        batches[1] = pa.RecordBatch.from_arrays(columns, schema=batches[1].schema)
    elif change == "order":
        batches.reverse()
    elif change == "half a batch":
        batches[1] = batches[1].slice(0, 5)
    with TraceWriter(tmp_path / "a.balloon", Side.HOST) as writer:
        for batch in batches:
            writer.append("requests", batch)
        if change == "closed":
            from tests.unit.trace_samples import described

            writer.close(described())
    kept = sum(batch.num_rows for batch in batches)
    assert prove._is_sound(tmp_path / "a.balloon", kept) == (change == "none")


RECORDER = """
import sys, threading, time
from pathlib import Path
from tracer.record.prove_stream import write_until_killed

def ready_once_written():
    while not any(part.stat().st_size > 1 << 20 for part in Path(sys.argv[1]).glob("requests/*")):
        time.sleep(0.01)
    Path(sys.argv[2]).touch()

threading.Thread(target=ready_once_written, daemon=True).start()
write_until_killed(sys.argv[1])
"""


def test_a_recorder_is_killed_and_what_it_left_is_told(tmp_path):
    bundle, ready = tmp_path / "a.balloon", tmp_path / "ready"
    command = [sys.executable, "-c", RECORDER, str(bundle), str(ready)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        kill = prove_capture(command, bundle, ready, 0.3)
    assert kill.kept_rows % BATCH_ROWS == 0
    assert kill.kept_rows > 0
    assert kill.gap_free
    assert not bundle.exists()


def test_a_recorder_that_ends_by_itself(tmp_path):
    command = [sys.executable, "-c", "import sys; sys.exit('no such VM')"]
    with pytest.raises(AerostatError, match="ended by itself") as caught:
        prove_capture(command, tmp_path / "a.balloon", tmp_path / "ready", 0.0)
    assert "no such VM" in caught.value.reason


def test_a_directory_that_is_not_there(tmp_path):
    err = refused(ExitCode.FAILURE, "record", "--prove", "-o", tmp_path / "no" / "x.balloon")
    assert "cannot prove" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--prove", "--guest"],
        ["--prove", "--detail", "calls"],
        ["--prove", "--pid", "1", "--budget", "1G"],
        ["--prove", "--metrics-listen", ":9105"],
        ["--prove", "--duration", "1s"],
        ["--json", "--pid", "1", "-o", "x.balloon"],
        ["--pid", "1"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_go_together(arguments, tmp_path):
    done = run(["record", *arguments], cwd=tmp_path)
    assert done.returncode == ExitCode.USAGE
    assert "Error: " in done.stderr
    if "--prove" in arguments:
        assert arguments[-2] in done.stderr or arguments[-1] in done.stderr


def test_an_interrupted_proof_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "aerostat", "record", "--prove", "-q", "-o", "x.balloon"]
    with subprocess.Popen(
        command, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(Path(tmp_path).rglob("*.part")):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []
