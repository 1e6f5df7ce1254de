"""What show says of a recording itself: scope, losses, probes; at widths people have."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from aerostat import recorder_tables
from aerostat.scope import scopes
from tracer.trace.layout import read_manifest
from tracer.trace.manifest import Loss, Manifest, ProbeRecord, SideInfo
from tracer.trace.schema import Side

ROOT = Path(__file__).parents[2]
S = 1_000_000_000
FENTRY = "fentry __x64_sys_{}: not permitted; kprobe __x64_sys_{}: no such file"


def probe(point: str, status: str = "attached", **columns) -> ProbeRecord:
    way = "tracepoint" if status == "attached" else ""
    return ProbeRecord(point, way, f"syscalls:{point}", status, **columns)


def recorded(detail: str, *probes: ProbeRecord, **sides: SideInfo) -> Manifest:
    host = SideInfo(4096, 100 * S, 200 * S, detail=detail, probes=probes)
    return Manifest(sides={"host": host, **sides})


@pytest.mark.parametrize(
    ("detail", "holds", "lacks"),
    [
        ("requests", "every request with its pages", "no system calls"),
        ("discards", "neighbours merged", ""),
        ("calls", "every single discard call", ""),
    ],
)
def test_each_detail_says_what_it_holds_and_lacks(detail, holds, lacks):
    host, guest = scopes(recorded(detail))
    assert (host.side, host.detail) == (Side.HOST, detail)
    assert holds in host.holds
    assert lacks in host.lacks
    assert bool(host.lacks) == bool(lacks) == bool(host.remedy)
    assert "allocate and send (a, b) are not observed" in guest.lacks


def test_where_no_request_can_be_seen_the_reason_and_the_way_out_are_told():
    unseen = probe("queues-pop", "failed", reason="no function fits")
    host, _ = scopes(recorded("discards", unseen))
    assert host.holds.startswith("discard calls on guest memory")
    assert "no function fits" in host.lacks
    assert "record in the guest" in host.remedy


def test_a_guests_side_alone_lacks_the_hosts():
    host, guest = scopes(Manifest(sides={"guest": SideInfo(4096, 0)}))
    assert "translate and discard (c, d) are not observed" in host.lacks
    assert guest.lacks == ""


def test_losses_are_one_row_for_each_cause_with_the_ends_of_many_stretches(capsys):
    losses = [
        Loss("host", "requests", 10, (101 + i) * S, (101 + i) * S + S // 2, "ring")
        for i in range(40)
    ]
    losses += [Loss("host", "calls", 7, None, 150 * S, "disk")]
    recorder_tables.draw_losses(losses, recorded("calls"), is_complete=True)
    rows = [line for line in capsys.readouterr().out.splitlines() if "host" in line]
    assert len(rows) == 2
    assert "400" in rows[0]
    assert "the ring was full" in rows[0]
    assert "+1.000 s to +1.500 s, 38 more, +40.000 s to +40.500 s" in rows[0]
    assert "the disk was full or failed" in rows[1]
    assert "? to +50.000 s" in rows[1]


def test_a_cause_that_is_not_known_is_told_as_it_is(capsys):
    losses = [Loss("host", "calls", 1, 0, 1, "gremlins"), Loss("host", "marks", 1, 0, 1)]
    recorder_tables.draw_losses(losses, Manifest(), is_complete=True)
    known, unknown = (line for line in capsys.readouterr().out.splitlines() if "host" in line)
    assert "gremlins" in known
    assert unknown.split() == ["host", "marks", "1", "-", "-"]


def test_a_reason_that_many_probes_share_is_said_once_below(capsys):
    probes = [
        probe(f"{name}-enter", reason=FENTRY.format(name, name), cost_ns=45.2, hits=9)
        for name in ("madvise", "fallocate", "process_madvise")
    ]
    probes += [probe(point, "failed", reason="no function fits") for point in ("a-pop", "a-push")]
    probes += [probe("target", cost_ns=3.0, bystander_ns=31.0, hits=4)]
    recorder_tables.draw_probes(recorded("calls", *probes))
    out = capsys.readouterr().out
    assert out.count("not permitted") == 1
    assert "not by fentry __x64_sys_*: not permitted; kprobe __x64_sys_*: no such file" in out
    assert "[2] a-pop, a-push: no function fits" in out
    rows = {line.split()[1]: line.split() for line in out.splitlines() if "host  " in line}
    assert rows["fallocate-enter"][2:7] == ["tracepoint", "[1]", "9", "45.2", "ns"]
    assert rows["a-pop"][2:4] == ["failed", "[2]"]
    assert rows["target"][-8:-1] == ["4", "3", "ns", "12", "ns", "31", "ns"]


def test_the_hits_of_older_recorders_are_of_no_one_probe(capsys):
    manifest = read_manifest(ROOT / "traces" / "plain.balloon")
    recorder_tables.draw_probes(manifest)
    out = capsys.readouterr().out
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("host ")]
    assert {row[1] for row in rows} >= {"madvise-enter", "fallocate-exit", "queues-pop"}
    assert {row[3] for row in rows} == {"-"}
    assert "786,826" not in out
    assert "Recorders of format 1.0 counted the host's probes together" in out
    recorder_tables.draw_probes(recorded("calls", probe("target", hits=4)))
    assert "together" not in capsys.readouterr().out


def shown(trace: Path, columns: int) -> list[str]:
    """Lines that the command writes to a terminal of this width."""
    leader, follower = pty.openpty()
    code = "from aerostat.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    environment = {**os.environ, "COLUMNS": str(columns), "LINES": "24", "TERM": "dumb"}
    with subprocess.Popen(
        [sys.executable, "-c", code, "show", str(trace)],
        stdout=follower,
        cwd=ROOT,
        env=environment,
    ):
        os.close(follower)
        text = b""
        while True:
            try:
                read = os.read(leader, 1 << 16)
            except OSError:
                break
            if not read:
                break
            text += read
    os.close(leader)
    return text.decode().replace("\r", "").splitlines()


@pytest.mark.parametrize("columns", [80, 100, 140])
@pytest.mark.parametrize("name", ["plain", "fragmented", "reporting"])
def test_a_real_trace_fits_the_terminal_and_keeps_its_names_and_figures(name, columns):
    lines = shown(ROOT / "traces" / f"{name}.balloon", columns)
    assert max(map(len, lines)) <= columns
    assert not any("…" in line for line in lines)
    letters = {line.split()[0]: line for line in lines if line.strip()[1:3] == "  "}
    assert {"b", "c", "d"} <= set(letters)
    assert "discard" in letters["d"]
    assert any(line.split()[:2] == ["madvise", "DONTNEED"] for line in lines)
