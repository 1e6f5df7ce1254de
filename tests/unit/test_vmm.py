"""Command lines of every kind of VMM, and what is told of a VM from them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.unit.proc_tree import KUBEVIRT, LIBVIRT, OPENSTACK, PROXMOX, QEMU, UUID, add_process
from tracer.errors import ProcessEndedError, ProcessError
from tracer.vms.mappings import mappings
from tracer.vms.vmm import Vmm, inspect

GIB = 1 << 30


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    return tmp_path / "proc"


def qemu(proc: Path, *arguments: str) -> Vmm:
    add_process(proc, 7, [QEMU, *arguments], exe=QEMU)
    return inspect(7, proc)


def started(proc: Path, *arguments: str) -> Vmm:
    add_process(proc, 7, arguments, exe=arguments[0])
    return inspect(7, proc)


def test_a_pid_that_is_not_there_is_named():
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    for look in (inspect, mappings):
        with pytest.raises(ProcessEndedError, match=f"there is no process {child.pid}") as error:
            look(child.pid)
        assert "aerostat vms" in error.value.remedy


def test_a_process_that_is_no_vmm_is_refused_with_what_it_runs():
    with pytest.raises(ProcessError, match="not a VMM") as error:
        inspect(os.getpid())
    assert "python" in error.value.reason


@pytest.mark.parametrize(
    ("arguments", "manager", "name", "memory", "vcpus", "machine", "accel"),
    [
        (LIBVIRT, "libvirt", "web-1", 8 * GIB, 4, "pc-q35-7.2", "kvm"),
        (OPENSTACK, "openstack", "instance-0000002a", 2 * GIB, 1, "pc-i440fx-4.2", "kvm"),
        (KUBEVIRT, "kubevirt", "shop_db-0", 4 * GIB, 2, "pc-q35-rhel9.4.0", "kvm"),
        (PROXMOX, "proxmox", "mail", 13 * GIB, 4, "pc-i440fx-8.1+pve0", None),
    ],
)
def test_what_each_manager_writes(proc, arguments, manager, name, memory, vcpus, machine, accel):
    found = started(proc, *arguments)
    assert (found.kind, found.manager, found.name, found.uuid) == ("qemu", manager, name, UUID)
    assert (found.memory_bytes, found.vcpus) == (memory, vcpus)
    assert (found.machine, found.accel) == (machine, accel)
    assert found.vm_id == ("112" if manager == "proxmox" else None)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2048", 2 * GIB),
        ("2G", 2 * GIB),
        ("1.5G", 3 * GIB // 2),
        ("512M", GIB // 2),
        ("size=4G,slots=2,maxmem=8G", 4 * GIB),
        ("8192k", 8 << 20),
        ("lots", None),
        ("0", None),
        ("99999999999999999999T", None),
    ],
)
def test_memory_size(proc, text, expected):
    assert qemu(proc, "-m", text).memory_bytes == expected


def test_memory_that_is_not_said_is_the_default_unless_a_file_may_say_it(proc):
    assert qemu(proc).memory_bytes == 128 << 20
    assert qemu(proc, "-readconfig", "vm.cfg").memory_bytes is None


def test_every_machine_option_counts(proc):
    """Newer libvirt and people split them; -M is another name of -machine."""
    found = qemu(proc, "-M", "q35", "-machine", "accel=kvm:tcg", "-m", "4096")
    assert (found.machine, found.accel) == ("q35", "kvm")
    assert qemu(proc, "-machine", "pc,accel=tcg", "-enable-kvm").accel == "tcg"
    assert qemu(proc, "-enable-kvm").accel == "kvm"


def test_commas_in_a_name_are_doubled(proc):
    assert qemu(proc, "-name", "a,,b,debug-threads=on").name == "a,b"


def test_vcpus_from_the_topology_alone(proc):
    assert qemu(proc, "-smp", "sockets=2,cores=4,threads=2").vcpus == 16
    assert qemu(proc, "-smp", "many").vcpus is None


def test_a_plain_qemu_has_no_manager(proc):
    found = qemu(proc, "-name", "mine")
    assert (found.manager, found.name, found.uuid) == (None, "mine", None)


@pytest.mark.parametrize(
    "program",
    [
        "/usr/libexec/qemu-kvm",
        "/nix/store/abc-qemu/bin/.qemu-system-x86_64-wrapped",
        "/opt/kata/bin/qemu-system-x86_64-snp-experimental",
        "/usr/bin/kvm",
    ],
)
def test_names_that_qemu_goes_by(proc, program):
    assert started(proc, program, "-m", "1G").kind == "qemu"


@pytest.mark.parametrize(
    "arguments",
    [
        (QEMU, "-S", "-machine", "none,accel=kvm:tcg", "-qmp", "unix:/x", "-daemonize"),
        ("/usr/bin/qemu-img", "convert"),
        ("/usr/bin/qemu-ga", "--method", "virtio-serial"),
        ("/usr/bin/qemu-storage-daemon",),
        ("/usr/bin/qemu-x86_64", "/bin/ls"),
        ("/usr/bin/firecracker-containerd",),
        ("/usr/bin/crosvm", "balloon", "512", "/run/crosvm.sock"),
        ("/usr/bin/krunvm", "list"),
        ("/usr/libexec/virtiofsd", "--fd=3"),
    ],
)
def test_programs_of_the_same_family_that_run_no_vm(proc, arguments):
    with pytest.raises(ProcessError, match="not a VMM"):
        started(proc, *arguments)


def test_firecracker_under_its_jailer(proc, tmp_path):
    """The jailer copies the program, changes the root, and adds times to the arguments."""
    root = tmp_path / "jail"
    root.mkdir()
    config = {"machine-config": {"vcpu_count": 2, "mem_size_mib": 512}, "drives": []}
    (root / "vm.json").write_text(json.dumps(config))
    arguments = ["/firecracker", "--id", "551e7604-e35c", "--start-time-us", "1"]
    process = add_process(
        proc, 9, [*arguments, "--config-file=/vm.json"], exe="/firecracker", namespace_pids=(9, 1)
    )
    (process / "root").symlink_to(root)
    found = inspect(9, proc)
    assert (found.kind, found.name, found.container) == ("firecracker", "551e7604-e35c", True)
    assert (found.memory_bytes, found.vcpus) == (512 << 20, 2)


def test_firecracker_set_up_over_its_api_says_no_size(proc):
    found = started(proc, "/usr/bin/firecracker-v1.7.0-x86_64", "--api-sock", "/run/fc/a.sock")
    assert (found.name, found.memory_bytes, found.vcpus) == ("/run/fc/a.sock", None, None)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"machine-config": 3}', "\0", None])
def test_a_configuration_that_is_none_says_nothing(proc, tmp_path, content):
    process = add_process(proc, 9, ["fc", "--config-file", "vm.json"], exe="/bin/firecracker")
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    (process / "cwd").symlink_to(cwd)
    if content is None:
        os.mkfifo(cwd / "vm.json")  # A program that waits for a writer would hang here.
    else:
        (cwd / "vm.json").write_text(content)
    assert inspect(9, proc).memory_bytes is None


def test_cloud_hypervisor(proc):
    found = started(
        proc,
        "/usr/bin/cloud-hypervisor",
        *("--api-socket", "path=/run/ch/web.sock", "--cpus", "boot=4,max=8"),
        *("--memory", "size=4G,shared=on", "--platform", f"uuid={UUID}"),
    )
    assert (found.kind, found.name, found.uuid) == ("cloud-hypervisor", "/run/ch/web.sock", UUID)
    assert (found.memory_bytes, found.vcpus) == (4 * GIB, 4)


def test_cloud_hypervisor_with_memory_zones(proc):
    found = started(
        proc,
        "/usr/bin/cloud-hypervisor-static",
        *("--api-socket=/x", "--memory", "size=0"),
        *("--memory-zone", "id=a,size=1G", "id=b,size=3G", "--kernel", "k"),
        "--memory-zone=id=c,size=1G",
    )
    assert (found.name, found.memory_bytes) == ("/x", 5 * GIB)


def test_a_long_command_line_holds_nobody_up(proc):
    """Anybody may start a program of that name, and root looks at it again and again."""
    zones = [part for number in range(40_000) for part in ("--memory-zone", f"id={number:x}")]
    begin_s = time.monotonic()
    assert started(proc, "/usr/bin/cloud-hypervisor", *zones).memory_bytes is None
    assert time.monotonic() - begin_s < 5


def test_crosvm_and_krunvm(proc):
    found = started(
        proc, "/usr/bin/crosvm", "run", "-m", "2048", "--cpus", "num-cores=4", "-s", "/run/a.sock"
    )
    assert (found.kind, found.name, found.memory_bytes) == ("crosvm", "/run/a.sock", 2 * GIB)
    assert found.vcpus == 4
    found = started(proc, "/usr/bin/krunvm", "start", "builder")
    assert (found.kind, found.name, found.memory_bytes) == ("libkrun", "builder", None)


def test_whatever_maps_libkrun_runs_a_vm(proc):
    line = "7f0000000000-7f0000001000 r-xp 00000000 fe:00 12   /usr/lib64/{}\n"
    add_process(proc, 7, ["crun"], exe="/usr/bin/crun", maps=line.format("libkrun.so.1.9.8"))
    assert inspect(7, proc).kind == "libkrun"
    add_process(proc, 7, ["crun"], exe="/usr/bin/crun", maps=line.format("libkrunfw.so.4"))
    with pytest.raises(ProcessError):
        inspect(7, proc)


def test_a_deleted_program_keeps_its_name(proc):
    add_process(proc, 7, [QEMU, "-m", "1G"], exe=f"{QEMU} (deleted)")
    found = inspect(7, proc)
    assert (found.exe, found.exe_deleted, found.kind) == (Path(QEMU), True, "qemu")


def test_a_program_that_may_not_be_read_goes_by_its_own_word(proc):
    add_process(proc, 7, [QEMU, "-name", "other"], exe=None)
    found = inspect(7, proc)
    assert (found.name, found.exe, found.exe_deleted) == ("other", Path(QEMU), False)


def test_hostile_arguments_are_bounded(proc):
    found = qemu(
        proc,
        *("-name", "x" * 100_000, "-uuid", "u" * 100_000, "-smp", "9" * 5000),
        *("-object", "[" * 100_000, "-object", '{"qom-type":' + "[" * 100_000, "-m", "9" * 5000),
        *("-machine", "t" * 100_000, "-numa", "node,nodeid=" + "9" * 5000 + ",memdev=x"),
    )
    assert len(found.name) == 1024
    assert len(found.uuid) == 1024
    assert len(found.machine) == 64
    assert (found.memory_bytes, found.vcpus) == (None, None)


def test_bytes_that_are_no_text_and_a_name_with_parentheses(proc):
    add_process(proc, 7, [b"/usr/bin/kvm", b"-name", b"\xff\x1b[2J"], exe=QEMU, comm=") S 1 (")
    found = inspect(7, proc)
    assert found.name == "�\x1b[2J"
    assert found.parent == 1
