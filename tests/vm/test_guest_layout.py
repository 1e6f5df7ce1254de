"""The memory map of a real QEMU, told from outside, against what its own monitor says."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest

from tracer.vms.discover import find_vm
from tracer.vms.learned_map import LearnedMap
from tracer.vms.memory_map import find_memory
from tracer.vms.recordable import MapState, Records, look_at
from tracer.vms.vmm import inspect

GIB = 1 << 30
FOUR_GIB = 4 * GIB


class Monitor:
    """A paused QEMU and its human monitor."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = process.pid
        self._until_prompt()
        # The first prompt comes before the machine is made, the answer to a command after that.
        self._ask("info status")

    def hva(self, gpa: int) -> int:
        """Where QEMU has a guest-physical address."""
        text = self._ask(f"gpa2hva {gpa:#x}")
        match = re.search(r"is (?:at )?(0x[0-9a-f]+)\s*$", text.strip())
        assert match, text
        return int(match.group(1), 16)

    def _ask(self, command: str) -> str:
        print(command, file=self.process.stdin, flush=True)
        return self._until_prompt()

    def _until_prompt(self) -> str:
        text = ""
        while not text.endswith("(qemu) "):
            char = self.process.stdout.read(1)
            assert char, f"QEMU ended: {text}"
            text += char
        return text.removesuffix("(qemu) ")


@contextmanager
def paused(*arguments: str) -> Iterator[Monitor]:
    qemu = shutil.which("qemu-system-x86_64")
    argv = [qemu, "-S", "-nodefaults", "-display", "none", "-accel", "tcg", "-monitor", "stdio"]
    with subprocess.Popen(
        [*argv, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield Monitor(process)
        finally:
            process.kill()


def node(number: int, kind: str, size: str) -> list[str]:
    return [
        *("-object", f"memory-backend-{kind},id=ram-node{number},size={size},reserve=off"),
        *("-numa", f"node,nodeid={number},memdev=ram-node{number}"),
    ]


def backend(machine: str, size: str, kind: str, more: str = "") -> list[str]:
    return [
        *("-m", size, "-machine", f"{machine},memory-backend=pc.ram"),
        *("-object", f"memory-backend-{kind},id=pc.ram,size={size}{more},reserve=off"),
    ]


@pytest.mark.parametrize(
    ("arguments", "low"),
    [
        (["-m", "512M"], 512 << 20),
        (backend("pc", "6G", "ram"), 3 * GIB),
        (backend("q35", "6G", "memfd", ",share=on"), 2 * GIB),
        (backend("q35", "2560M", "ram"), 2560 << 20),
        (backend("pc", "3400M", "memfd"), 3400 << 20),
        (backend("pc,max-ram-below-4g=1G", "2G", "ram"), GIB),
        (backend("microvm", "4G", "ram", ",share=on"), 3 * GIB),
        (["-m", "4G", "-smp", "2", *node(0, "ram", "1G"), *node(1, "memfd", "3G")], 3 * GIB),
        (["-m", "4G", "-smp", "2", *node(1, "ram", "3G"), *node(0, "ram", "1G")], 3 * GIB),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_region_lies_where_qemu_has_it(arguments, low):
    with paused(*arguments) as vm:
        memory = find_memory(inspect(vm.pid))
        assert memory.reason == ""
        assert sum(r.length_bytes for r in memory.regions if r.gpa < FOUR_GIB) == low
        for region in memory.regions:
            # Above the area where a PC's ROMs lie over memory.
            first = max(region.gpa, 1 << 20)
            for gpa in (first, region.gpa + region.length_bytes - 4096):
                assert vm.hva(gpa) == region.hva + gpa - region.gpa


def test_a_file_in_a_directory(tmp_path: Path):
    with paused(*backend("pc", "4G", "file", f",mem-path={tmp_path},share=on")) as vm:
        regions = find_memory(inspect(vm.pid)).regions
        assert [region.file_offset_bytes for region in regions] == [0, 3 * GIB]
        assert vm.hva(FOUR_GIB) == regions[1].hva


def test_equal_nodes_are_told_apart_by_one_request():
    with paused("-m", "4G", "-smp", "2", *node(0, "ram", "2G"), *node(1, "ram", "2G")) as vm:
        memory = find_memory(inspect(vm.pid))
        assert memory.regions == ()
        learned = LearnedMap(memory)
        gpa = 64 << 20
        learned.add(np.array([gpa]), np.array([vm.hva(gpa)]))
        assert learned.is_certain
        for region in learned.regions:
            assert vm.hva(region.gpa + (8 << 20)) == region.hva + (8 << 20)


def test_it_is_found_with_its_handlers():
    uuid = str(uuid4())
    with paused("-name", "a,,b", "-uuid", uuid, "-device", "virtio-balloon-pci") as vm:
        found = find_vm(uuid=uuid)
        assert (found.pid, found.name, found.kind, found.accel) == (vm.pid, "a,b", "qemu", "tcg")
        (seen,) = look_at([found])
        assert (seen.records, seen.memory_map) == (Records.REQUESTS, MapState.KNOWN)
        assert "virtio_balloon_handle_output" in seen.handlers
