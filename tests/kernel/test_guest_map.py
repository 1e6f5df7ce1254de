"""A VM's memory map, learned from its requests up to the last of a VM that has ended."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tracer.engine import decode
from tracer.host_side.guest_map import GuestMap
from tracer.vms.process import read_process
from tracer.vms.vmm import Vmm

MIB = 1 << 20
CHILD = f"""
import mmap, sys
memory = mmap.mmap(-1, {256 * MIB}, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print("ready", flush=True)
sys.stdin.read()
"""


def test_the_last_requests_of_a_vm_that_has_ended_are_learned_from() -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    process = read_process(child.pid)
    vmm = Vmm(
        pid=child.pid,
        exe=Path("/usr/bin/qemu-system-x86_64"),
        arguments=("qemu-system-x86_64", "-m", "12345M"),
        name=None,
        uuid=None,
        memory_bytes=12345 * MIB,
        vcpus=1,
        machine="pc",
        accel=None,
        kind="qemu",
        manager=None,
        start_ticks=process.start_ticks,
    )
    learned = GuestMap(vmm)
    assert learned.regions == ()
    start, end = max(learned.spans, key=lambda span: span[1] - span[0])
    child.communicate()
    requests = np.zeros(2, decode.HOST_REQUEST)
    requests["total"] = 1
    requests["first_hva"] = (start + 4096, end - 4096)
    requests["first_gpa"] = requests["first_hva"] - np.uint64(start)
    learned.learn(requests)
    assert [(region.gpa, region.hva) for region in learned.regions] == [(0, start)]
