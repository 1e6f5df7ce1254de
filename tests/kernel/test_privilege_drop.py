"""Privileges given up after attaching: in every thread, for good, with the capture going on."""

import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.standins.build import qemu_like
from tracer.engine.privilege import Capability
from tracer.engine.privilege_drop import writing_needs
from tracer.trace.reader import open_trace
from tracer.trace.schema import Side

SCRIPT = """
import json, mmap, os, subprocess, sys, threading
import numpy, pyarrow  # each with threads of its own
from pathlib import Path
from tracer.engine.bpf_programs import EMPTY, PROG_TYPE_KPROBE, load_program
from tracer.engine.loader import EmptyPrograms
from tracer.cost.machine_code import MachineCode, loop
from tracer.engine.bpf_programs import RunStats
from tracer.engine.privilege import Capability
from tracer.engine.privilege_drop import drop_privileges
from tracer.trace.errors import AerostatError

def status():
    tasks = Path("/proc/self/task").iterdir()
    texts = [(task / "status").read_text() for task in tasks]
    names = ("CapPrm", "CapEff", "CapInh", "NoNewPrivs")
    return [[text.split(name + ":")[1].split()[0] for name in names] for text in texts]

release = threading.Event()
for _ in range(3):
    threading.Thread(target=release.wait, daemon=True).start()
code = MachineCode({"nop": loop(b"\\x90")})
programs = EmptyPrograms()
programs.attach_uprobe("here", code.path, code.offset("nop"), os.getpid())
stats = RunStats()
keep = {Capability[name] for name in sys.argv[1:]}
left = drop_privileges(keep)
code.call("nop", 97)
said = {"left": sorted(c.name for c in left), "threads": status()}
said["runs"] = programs.runs("here").count
try:
    load_program(PROG_TYPE_KPROBE, EMPTY, "another")
except AerostatError as error:
    said["refused"] = str(error)
try:
    EmptyPrograms().attach_uprobe("more", code.path, code.offset("nop"), os.getpid())
except AerostatError as error:
    said["unattached"] = str(error)
ask = "print(open('/proc/self/status').read().split('CapEff:')[1].split()[0])"
said["after_exec"] = subprocess.run(
    [sys.executable, "-c", ask], capture_output=True, text=True
).stdout.strip()
said["sampled"] = len(Path("/proc/1/statm").read_text())
programs.close()
print(json.dumps(said))
"""


def drop(*keep: str) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *keep],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("keep", [(), ("CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH")], ids=len)
def test_every_thread_keeps_what_was_named_and_nothing_else(keep):
    said = drop(*keep)
    bits = f"{sum(1 << Capability[name] for name in keep):016x}"
    assert said["left"] == sorted(keep)
    assert len(said["threads"]) >= 5
    assert {tuple(thread) for thread in said["threads"]} == {(bits, bits, "0" * 16, "1")}
    assert said["after_exec"] == bits


def test_what_is_attached_goes_on_and_nothing_new_can_be():
    said = drop()
    assert said["runs"] == 97
    assert said["sampled"] > 0
    assert "lacks CAP_PERFMON, CAP_BPF" in said["refused"]
    assert "lacks CAP_PERFMON, CAP_BPF" in said["unattached"]


def test_a_way_through_other_peoples_directories_is_kept(tmp_path):
    home = tmp_path / "home"
    bundle = home / "x.balloon"
    bundle.mkdir(parents=True)
    if any(place.stat().st_uid != 0 for place in tmp_path.parents):
        pytest.skip("the temporary directory lies in a user's own")
    assert writing_needs(bundle) == frozenset()
    home.chmod(stat.S_IRWXU)
    os.chown(home, 65534, 65534)
    assert writing_needs(bundle) == {Capability.CAP_DAC_OVERRIDE}
    home.chmod(0o755)
    assert writing_needs(bundle) == frozenset()
    os.chown(bundle, 65534, 65534)
    assert writing_needs(bundle) == {Capability.CAP_DAC_OVERRIDE}


RECORD = """
import json, os, sys, threading
from pathlib import Path
from tracer.engine.bpf_programs import EMPTY, PROG_TYPE_KPROBE, load_program
from tracer.host_side.host import VmOptions, record_host
from tracer.engine.privilege import effective, names
from tracer.engine.privilege_drop import drop_privileges, recording_needs
from tracer.trace.errors import AerostatError
from tracer.vms.vmm import inspect

output, stop = Path(sys.argv[2]), threading.Event()

def ready():
    drop_privileges(recording_needs(output, from_host=True))
    print("ready", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()

options = VmOptions(output, vmm=inspect(int(sys.argv[1])), ready=ready)
record_host(options, stop=stop)
try:
    load_program(PROG_TYPE_KPROBE, EMPTY, "another")
except AerostatError as error:
    print(names(effective()), "|", error.reason)
"""


def test_a_recorder_without_privileges_still_drains_samples_and_closes(tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "2G", "-device", "virtio-balloon-pci") as vm:
        argv = [sys.executable, "-c", RECORD, str(vm.pid), str(output)]
        with subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
        ) as recorder:
            assert recorder.stdout.readline() == "ready\n"
            did = vm.send("inflate", 9000, 2000, -1)
            time.sleep(1.2)  # One row of samples is taken every second.
            said, _ = recorder.communicate(timeout=60)
    assert recorder.returncode == 0
    assert said.startswith("CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE | ")
    assert "lacks CAP_PERFMON, CAP_BPF" in said
    trace = open_trace(output)
    assert trace.is_complete
    assert trace.losses == ()
    requests = trace.table("requests", Side.HOST).to_pylist()
    assert sum(row["pages"] for row in requests) == did.pages == 2000
    assert trace.table("calls", Side.HOST)["count"].to_numpy().sum() == did.calls
    samples = trace.table("samples", Side.HOST).to_pylist()
    assert len(samples) >= 2
    assert all(row["rss_bytes"] for row in samples)
