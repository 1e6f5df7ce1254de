"""`aerostat record` where the kernel has no type information: by tracepoints, all the same."""

import pytest

from tests.kernel.verb import recording
from tests.standins.build import firecracker_like, qemu_like
from tracer.sites.probes import Kind
from tracer.trace.errors import ExitCode
from tracer.trace.reader import open_trace
from tracer.trace.schema import Side

WITHOUT_BTF = """
import sys
from pathlib import Path
from tracer.engine import libbpf
libbpf._BTF_DIRECTORY = Path({nowhere!r})
from aerostat.cli import main
sys.exit(main())
"""
"""The verb, with BTF looked for where there is none."""


@pytest.mark.parametrize("vmm", [qemu_like, firecracker_like])
def test_a_host_without_btf_is_recorded_by_tracepoints(vmm, tmp_path):
    output = tmp_path / "host.balloon"
    memory = ("-m", "256M") if vmm is qemu_like else ("--mem-size-mib", "256")
    code = ("-c", WITHOUT_BTF.format(nowhere=str(tmp_path / "none")))
    with vmm(*memory) as vm, recording(vm, output, code=code) as recorder:
        did = vm.send("inflate", 1000, 900, 3)
        assert recorder.end() == ExitCode.OK
    trace = open_trace(output)
    assert trace.losses == ()
    calls = trace.table("calls", Side.HOST).to_pylist()
    assert sum(row["count"] for row in calls) == did.calls == 900
    probes = [p for p in trace.manifest.sides["host"].probes if p.point.startswith("madvise-")]
    assert len(probes) == 2
    for probe in probes:
        assert probe.status == "attached"
        assert probe.way in {Kind.KPROBE.value, Kind.KRETPROBE.value, Kind.TRACEPOINT.value}
        assert str(tmp_path / "none" / "vmlinux") in probe.reason
