"""A QEMU built for CET, as Fedora's and Ubuntu's are: its functions begin with an endbr64."""

from pathlib import Path

from tests.kernel.recording import recording
from tests.standins.build import program, qemu_like
from tracer.sites.host_probes import find_sites
from tracer.sites.instructions import ENDBR64, is_emulated
from tracer.sites.probes import HOST_EVENT_POINTS
from tracer.trace.reader import open_trace
from tracer.trace.schema import Mark, Side

EVENTS = [way.target for point in HOST_EVENT_POINTS for way in point.ways]
GIB = 1 << 30


def test_what_qemu_says_of_itself_is_seen_behind_its_endbr64(tmp_path: Path):
    built = program("qemu-system-x86_64", cet=True)
    output, code = tmp_path / "host.balloon", built.read_bytes()
    with qemu_like("-m", "2G", path=built) as vm:
        sites = find_sites(vm.pid)
        for name in EVENTS:
            at = sites.file_offsets[name]
            assert code[at - len(ENDBR64) : at] == ENDBR64
            assert is_emulated(code[at : at + 15])
        with recording(vm, output):
            vm.send("target", GIB)
            did = vm.send("inflate", 10_000, 300, 1)
            vm.send("actual", 2 * GIB - (1 << 20))
            vm.send("runstate", 9)
    trace = open_trace(output)
    marks = trace.table("marks", Side.HOST).to_pylist()
    told = {row["mark"]: (row["value"], row["text"]) for row in marks}
    assert told[Mark.TARGET][0] == GIB
    assert told[Mark.ACTUAL][0] == 2 * GIB - (1 << 20)
    assert told[Mark.RUN_STATE][1] == "running"
    assert sum(trace.table("requests")["pages"].to_pylist()) == did.pages
    hits = {probe.point: probe.hits for probe in trace.manifest.sides["host"].probes}
    assert (hits["target"], hits["actual"], hits["run-state"]) == (1, 1, 1)
