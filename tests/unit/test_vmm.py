"""Processes and command lines, read as /proc shows them."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tracer import vmm
from tracer.errors import ProcessError
from tracer.memory_map import MemoryMap
from tracer.trace.manifest import Region
from tracer.vmm import below_4g_bytes

GIB = 1 << 30


def parsed(*arguments: str) -> vmm.Vmm:
    return vmm._from_command_line(1, vmm.Path("/usr/bin/qemu-system-x86_64"), ("qemu", *arguments))


def test_a_pid_that_is_not_there_is_named():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    with pytest.raises(ProcessError, match=f"there is no process {child.pid}") as error:
        vmm.inspect(child.pid)
    assert "pgrep" in error.value.remedy


def test_a_process_that_is_no_vmm_is_refused_with_what_it_runs():
    with pytest.raises(ProcessError, match="not a VMM") as error:
        vmm.inspect(os.getpid())
    assert "python" in error.value.reason


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2048", 2 * GIB),
        ("2G", 2 * GIB),
        ("512M", GIB // 2),
        ("size=4G,slots=2,maxmem=8G", 4 * GIB),
        ("8192k", 8 << 20),
    ],
)
def test_memory_size(text, expected):
    assert parsed("-m", text).memory_bytes == expected


def test_memory_size_that_cannot_be_read_is_an_error():
    with pytest.raises(ProcessError, match="memory size"):
        parsed("-m", "lots")


def test_libvirt_style_command_line():
    found = parsed(
        "-name",
        "guest=web-1,debug-threads=on",
        "-machine",
        "pc-q35-7.2,accel=kvm,usb=off",
        "-accel",
        "kvm",
        "-m",
        "size=8388608k",
        "-uuid",
        "0f0e",
        "-smp",
        "4,sockets=4",
    )
    assert (found.name, found.uuid, found.vcpus) == ("web-1", "0f0e", 4)
    assert (found.machine, found.accel, found.memory_bytes) == ("pc-q35-7.2", "kvm", 8 * GIB)


@pytest.mark.parametrize(
    ("machine", "memory", "low"),
    [
        ("pc", 2 * GIB, 2 * GIB),
        ("pc", 8 * GIB, 3 * GIB),
        ("q35", 2 * GIB, 2 * GIB),
        ("q35", 8 * GIB, 2 * GIB),
    ],
)
def test_split_at_the_pci_hole(machine, memory, low):
    assert below_4g_bytes(machine, memory) == low


def test_addresses_translate_over_the_pci_hole():
    base = 0x7F0000000000
    regions = (
        Region("below-4g", 0, base, 3 * GIB, "anon", 4096),
        Region("above-4g", 4 * GIB, base + 3 * GIB, GIB, "anon", 4096),
    )
    hva = np.array([base, base + 3 * GIB - 4096, base + 3 * GIB, base + 4 * GIB, 5], np.uint64)
    gpa = MemoryMap(regions).gpa_of_hva(hva)
    assert gpa.tolist() == [0, 3 * GIB - 4096, 4 * GIB, -1, -1]
    offsets = np.array([0, 3 * GIB, 4 * GIB], np.uint64)
    assert MemoryMap(regions).gpa_of_offset(offsets).tolist() == [0, 4 * GIB, -1]


def test_every_machine_option_counts():
    """Newer libvirt and people split them; -M is another name of -machine."""
    found = parsed("-M", "q35", "-machine", "accel=kvm", "-m", "4096")
    assert (found.machine, found.accel) == ("q35", "kvm")
    assert parsed("-machine", "pc,accel=tcg", "-enable-kvm").accel == "tcg"
    assert parsed("-enable-kvm", "-m", "1.5G").accel == "kvm"
    assert parsed("-m", "1.5G").memory_bytes == 3 * GIB // 2
