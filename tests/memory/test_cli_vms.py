"""`aerostat vms` beside real processes: what it lists, and how it shows hostile names."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aerostat.cli import main
from tests.standins.build import configured, firecracker_like, qemu_like

UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"
BALLOON = ("-device", "virtio-balloon-pci,free-page-reporting=on")


def listed(capsys) -> dict[int, dict]:
    assert main(["vms", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    return {vm["pid"]: vm for vm in document["vms"]}


def test_a_qemu_and_a_firecracker_side_by_side(capsys):
    with (
        qemu_like("-m", "6G", "-name", "guest=web", "-uuid", UUID, "-smp", "3", *BALLOON) as qemu,
        firecracker_like("--id", "micro", "--mem-size-mib", "5000") as micro,
    ):
        found = listed(capsys)
    web = found[qemu.pid]
    assert (web["name"], web["uuid"], web["kind"], web["manager"]) == ("web", UUID, "qemu", None)
    assert (web["memory_bytes"], web["vcpus"], web["machine"]) == (6 << 30, 3, "pc")
    assert (web["records"], web["memory_map"], web["reason"]) == ("requests", "known", "")
    assert web["handlers"][:2] == ["virtio_balloon_handle_output", "virtio_balloon_handle_report"]
    assert [region["hva"] for region in web["regions"]] == [part["hva"] for part in qemu.parts]
    other = found[micro.pid]
    assert (other["name"], other["records"], other["handlers"]) == ("micro", "discards", [])
    assert (other["memory_bytes"], other["machine"]) == (None, None)
    assert [region["gpa"] for region in other["regions"]] == [0, 4 << 30]
    assert "firecracker" in other["reason"]
    # Nothing states its size, and without KVM it has no VM's descriptor.
    assert (web["runs_vm"], other["runs_vm"]) == (True, False)


def test_what_only_has_a_vmms_name_is_listed_as_unlikely(capsys, tmp_path):
    script, named = Path(shutil.which("sleep")), tmp_path / "firecracker"
    shutil.copy(script, named)
    with (
        firecracker_like("--id", "micro", *configured(tmp_path, 256)) as micro,
        subprocess.Popen([named, "60"]) as other,
    ):
        found = listed(capsys)
        other.kill()
    assert (found[micro.pid]["runs_vm"], found[other.pid]["runs_vm"]) == (True, False)
    assert "unlikely" not in found[micro.pid]["reason"]
    assert "unlikely to be a VM" in found[other.pid]["reason"]
    assert found[other.pid]["select"] == ["--pid", str(other.pid)]


def test_each_vm_is_picked_by_its_name_or_where_that_is_not_enough_by_its_pid(capsys):
    once, twice = f"once-{os.getpid()}", f"twice-{os.getpid()}"
    names = (once, twice, twice, f"-{once}", f"{once}\x07")
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(qemu_like("-m", "64M", "-name", f"guest={n}")) for n in names]
        found = listed(capsys)
    picked = [found[vm.pid]["select"] for vm in vms]
    assert picked[0] == ["--vm", once]
    assert picked[1:] == [["--pid", str(vm.pid)] for vm in vms[1:]]


def test_what_is_missing_is_said(capsys):
    nodes = []
    for name in "ab":
        nodes += ["-object", f"memory-backend-ram,id={name},size=64M"]
        nodes += ["-numa", f"node,memdev={name}"]
    with qemu_like("-m", "128M", *nodes) as vm:
        found = listed(capsys)[vm.pid]
    assert found["memory_map"] == "learned"
    assert found["reason"] == "memory map: 2 maps fit; requests will tell; it has no balloon device"


def test_the_table_shows_no_control_character(capsys):
    with qemu_like("-m", "64M", "-name", "a\x1b[2J\nb\x07", "-uuid", "\x1b]0;x\x07") as vm:
        assert main(["vms"]) == 0
        text = capsys.readouterr().out
        assert str(vm.pid) in text
    assert r"a\x1b[2J\nb\x07" in text
    assert not set(text) & set("\x1b\x07\r")


def test_a_vm_that_ends_meanwhile_is_left_out(capsys, monkeypatch):
    from tracer.vms import discover

    with qemu_like("-m", "64M") as vm:
        before = discover.find_vms()
    monkeypatch.setattr(discover, "find_vms", lambda: before)
    assert vm.pid in [seen.pid for seen in before]
    assert vm.pid not in listed(capsys)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start another user's process")
def test_without_root_it_says_what_it_could_not_read():
    with qemu_like("-m", "64M", "-name", "theirs") as vm:
        run = subprocess.run(
            [sys.executable, "-m", "aerostat", "vms", "--json"],
            user=65534,
            extra_groups=(),
            capture_output=True,
            text=True,
            check=True,
        )
    document = json.loads(run.stdout)
    found = {seen["pid"]: seen for seen in document["vms"]}[vm.pid]
    assert (found["name"], found["records"], found["memory_map"]) == ("theirs", None, None)
    assert found["reason"] == "it belongs to another user"
    assert "without root" in document["limits"][0]
