"""VMs of a /proc of our own making: found, picked, and watched as they come and go."""

import shutil
from pathlib import Path

import pytest

from tests.unit.proc_tree import KUBEVIRT, LIBVIRT, PROXMOX, QEMU, UUID, add_process
from tracer.errors import ProcessError
from tracer.vms import discover
from tracer.vms.discover import Changes, Watch, find_vm, find_vms, is_replaced

RAM = "7f0000000000-7f0008000000 rw-p 00000000 00:00 0 \n"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """Three managers' VMs among other processes."""
    tree = tmp_path / "proc"
    add_process(tree, 1, ["/sbin/init"], exe="/usr/lib/systemd/systemd")
    add_process(tree, 2, [], exe=None, comm="kthreadd")
    add_process(tree, 100, LIBVIRT, exe=QEMU)
    add_process(tree, 200, KUBEVIRT, exe="/usr/libexec/qemu-kvm", namespace_pids=(200, 89))
    add_process(tree, 300, PROXMOX, exe=QEMU)
    (tree / "self").symlink_to("100")
    (tree / "uptime").write_text("1 1\n")
    return tree


def test_every_vm_is_found_and_nothing_else(proc):
    found = find_vms(proc)
    assert [(vm.pid, vm.name, vm.manager) for vm in found] == [
        (100, "web-1", "libvirt"),
        (200, "shop_db-0", "kubevirt"),
        (300, "mail", "proxmox"),
    ]
    assert [vm.container for vm in found] == [False, True, False]
    assert [vm.start_ticks for vm in found] == [1000] * 3


def test_a_process_that_ends_while_it_is_read_is_left_out(proc):
    (proc / "300" / "status").unlink()
    assert [vm.pid for vm in find_vms(proc)] == [100, 200]


def test_helpers_of_one_vm_are_not_vms(proc):
    """crosvm forks a process for each device; they keep its arguments."""
    arguments = ["/usr/bin/crosvm", "run", "-m", "512"]
    for pid, parent in ((400, 1), (401, 400), (402, 400)):
        add_process(proc, pid, arguments, exe="/usr/bin/crosvm", parent=parent)
    add_process(proc, 500, [*arguments, "-s", "x"], exe="/usr/bin/crosvm", parent=400)
    assert [vm.pid for vm in find_vms(proc) if vm.kind == "crosvm"] == [400, 500]


@pytest.mark.parametrize(
    ("wanted", "pid"),
    [
        ({"name": "web-1"}, 100),
        ({"name": "112"}, 300),
        ({"pid": 200}, 200),
        ({"pid": 200, "name": "shop_db-0"}, 200),
        ({"name": "mail", "uuid": UUID.upper()}, 300),
    ],
)
def test_a_vm_is_picked_by_what_it_is_known_by(proc, wanted, pid):
    assert find_vm(**wanted, proc=proc).pid == pid


def test_a_uuid_needs_no_dashes(proc):
    shutil.rmtree(proc / "100")
    shutil.rmtree(proc / "200")
    assert find_vm(uuid=UUID.replace("-", ""), proc=proc).pid == 300


def test_an_ambiguous_choice_lists_the_candidates(proc):
    add_process(proc, 101, [QEMU, "-name", "web-1"], exe=QEMU)
    with pytest.raises(ProcessError, match="more than one VM has name web-1") as error:
        find_vm(name="web-1", proc=proc)
    assert "web-1 (pid 100, libvirt" in error.value.reason
    assert "web-1 (pid 101, qemu)" in error.value.reason
    assert "mail" not in error.value.reason
    with pytest.raises(ProcessError, match="uuid 4dea22b3"):
        find_vm(uuid=UUID, proc=proc)


def test_no_choice_where_nothing_fits_lists_what_there_is(proc):
    with pytest.raises(ProcessError, match="no VM has name web and uuid x") as error:
        find_vm(name="web", uuid="x", proc=proc)
    assert "web-1 (pid 100" in error.value.reason
    assert "aerostat vms" in error.value.remedy
    with pytest.raises(ProcessError, match="pid 100 and name mail"):
        find_vm(pid=100, name="mail", proc=proc)


def test_a_host_without_vms_says_so(proc):
    for pid in ("100", "200", "300"):
        shutil.rmtree(proc / pid)
    assert find_vms(proc) == []
    with pytest.raises(ProcessError, match="no VM has name x") as error:
        find_vm(name="x", proc=proc)
    assert "no process here" in error.value.reason


def test_a_long_list_is_cut(proc):
    for pid in range(1000, 1030):
        add_process(proc, pid, [QEMU, "-name", "n" * 1000], exe=QEMU)
    with pytest.raises(ProcessError, match="more than one") as error:
        find_vm(proc=proc)
    assert "and 13 more" in error.value.reason
    assert len(error.value.reason) < 4000


def test_no_procfs_is_an_error(tmp_path):
    with pytest.raises(ProcessError, match="cannot list"):
        find_vms(tmp_path / "nowhere")


class TestIsReplaced:
    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        proc = tmp_path / "proc"
        add_process(proc, 50, [QEMU, "-name", "a"], exe=QEMU)
        return proc

    def after(self, tree: Path, arguments: list[str], exe: str | None, **more: int) -> bool:
        vm = find_vm(pid=50, proc=tree)
        (tree / "50" / "exe").unlink()
        add_process(tree, 50, arguments, exe=exe, **more)
        return is_replaced(vm, tree)

    @pytest.mark.parametrize(
        ("arguments", "exe", "stack"),
        [
            ([QEMU, "-name", "a", "-incoming", "defer"], QEMU, 0x7FFC00000000),
            ([QEMU, "-name", "a"], QEMU, 0x7FFD00000000),
            ([QEMU, "-name", "a"], "/opt/qemu-system-x86_64", 0),
            (["sh"], "/bin/sh", 0x7FFD00000000),
        ],
    )
    def test_another_program_in_its_process(self, tree, arguments, exe, stack):
        assert self.after(tree, arguments, exe, stack=stack)

    @pytest.mark.parametrize(
        ("exe", "stack"),
        [
            (QEMU, 0x7FFC00000000),
            (f"{QEMU} (deleted)", 0x7FFC00000000),
            (f"{QEMU}.old", 0x7FFC00000000),
            (None, 0),
        ],
    )
    def test_the_same_program_whatever_its_file_is_called(self, tree, exe, stack):
        assert not self.after(tree, [QEMU, "-name", "a"], exe, stack=stack)

    def test_one_that_ends_slowly_is_none(self, tree):
        """Its memory goes first: it has no program and no arguments then."""
        assert not self.after(tree, [], None, stack=0, flags=0x400004)

    def test_another_process_with_its_pid_is_none(self, tree):
        assert not self.after(tree, ["sh"], "/bin/sh", start_ticks=2000)

    def test_one_that_has_ended_is_none(self, tree):
        vm = find_vm(pid=50, proc=tree)
        shutil.rmtree(tree / "50")
        assert not is_replaced(vm, tree)


class TestWatch:
    def seen(self, changes) -> tuple[list[int], list[int]]:
        return [vm.pid for vm in changes.appeared], [vm.pid for vm in changes.ended]

    @pytest.fixture
    def clock(self, monkeypatch) -> list[float]:
        now = [1000.0]
        monkeypatch.setattr(discover.time, "monotonic", lambda: now[0])
        return now

    @pytest.fixture
    def tree(self, tmp_path) -> Path:
        """One VM whose memory is mapped."""
        proc = tmp_path / "proc"
        add_process(proc, 1, ["init"], exe="/sbin/init")
        add_process(proc, 50, [QEMU, "-name", "a"], exe=QEMU, maps=RAM)
        return proc

    def test_vms_appear_and_end_once(self, tree, clock):
        watch = Watch(tree)
        assert self.seen(watch.poll()) == ([50], [])
        assert self.seen(watch.poll()) == ([], [])
        add_process(tree, 60, [QEMU, "-name", "b"], exe=QEMU, maps=RAM)
        assert self.seen(watch.poll()) == ([60], [])
        shutil.rmtree(tree / "50")
        assert self.seen(watch.poll()) == ([], [50])
        assert [vm.name for vm in watch.vms] == ["b"]

    def test_a_pid_that_is_used_again_is_another_vm(self, tree, clock):
        watch = Watch(tree)
        watch.poll()
        add_process(tree, 50, [QEMU, "-name", "a"], exe=QEMU, maps=RAM, start_ticks=2000)
        changes = watch.poll()
        assert self.seen(changes) == ([50], [50])
        assert (changes.ended[0].start_ticks, changes.appeared[0].start_ticks) == (1000, 2000)

    def test_a_pid_that_goes_to_another_program_ends_the_vm(self, tree, clock):
        watch = Watch(tree)
        watch.poll()
        add_process(tree, 50, ["sh"], exe="/bin/sh", start_ticks=2000)
        assert self.seen(watch.poll()) == ([], [50])

    def test_a_vmm_that_executes_its_successor_is_another_vm(self, tree, clock):
        """QEMU 10 can hand a VM over to a newer QEMU in the same process (cpr-exec)."""
        watch = Watch(tree)
        watch.poll()
        add_process(tree, 50, [QEMU, "-name", "a", "-incoming", "defer"], exe=QEMU, maps=RAM)
        assert self.seen(watch.poll()) == ([50], [50])

    def test_a_second_successor_with_the_same_arguments_is_another_vm(self, tree, clock):
        watch = Watch(tree)
        watch.poll()
        add_process(tree, 50, [QEMU, "-name", "a"], exe=QEMU, maps=RAM, stack=0x7FFD00000000)
        assert self.seen(watch.poll()) == ([50], [50])
        add_process(tree, 50, [QEMU, "-name", "a"], exe=QEMU, maps=RAM, stack=0)
        assert self.seen(watch.poll()) == ([], []), "what may not be read tells nothing"

    def test_a_program_replaced_on_disk_is_the_same_vm(self, tree, clock):
        watch = Watch(tree)
        watch.poll()
        add_process(tree, 50, [QEMU, "-name", "a"], exe=f"{QEMU} (deleted)", maps=RAM)
        assert self.seen(watch.poll()) == ([], [])

    def test_a_vm_waits_until_its_memory_is_mapped_however_long(self, tree, clock):
        watch = Watch(tree)
        watch.poll()
        add_process(tree, 60, [QEMU, "-name", "b"], exe=QEMU)
        add_process(tree, 70, [QEMU, "-name", "c"], exe=QEMU)
        assert self.seen(watch.poll()) == ([], [])
        clock[0] += 1
        add_process(tree, 60, [QEMU, "-name", "b"], exe=QEMU, maps=RAM)
        assert self.seen(watch.poll()) == ([60], [])
        clock[0] += 600
        assert self.seen(watch.poll()) == ([], [])
        add_process(tree, 70, [QEMU, "-name", "c"], exe=QEMU, maps=RAM)
        clock[0] += 10
        assert self.seen(watch.poll()) == ([70], [])

    def test_what_only_has_the_name_is_doubted_once_and_never_taken(self, tree, clock):
        watch = Watch(tree)
        heap = "7e0000000000-7e0004000000 rw-p 00000000 00:00 0 \n"
        add_process(tree, 60, ["firecracker", "300"], exe="/opt/eve/firecracker", maps=heap)
        add_process(tree, 61, [QEMU, "-m", "1G"], exe="/opt/eve/qemu-system-x86_64", maps=heap)
        assert watch.poll().doubted == ()
        clock[0] += 5
        changes = watch.poll()
        assert (self.seen(changes), [vm.pid for vm in changes.doubted]) == (([], []), [60, 61])
        for _ in range(50):
            clock[0] += 10
            assert watch.poll() == Changes((), ())

    def test_a_descriptor_of_a_vm_is_enough(self, tree, clock):
        """Firecracker that is configured over its API states no size."""
        watch = Watch(tree)
        watch.poll()
        held = ["/dev/null", "anon_inode:kvm-vm"]
        add_process(tree, 60, ["firecracker"], exe="/usr/bin/firecracker", descriptors=held)
        assert self.seen(watch.poll()) == ([60], [])

    def test_a_name_like_a_vms_descriptor_is_none(self, tree, clock):
        watch = Watch(tree)
        held = ["/tmp/anon_inode:kvm-vm", "anon_inode:kvm-vm (deleted)", "anon_inode:[eventfd]"]
        add_process(tree, 60, ["firecracker"], exe="/opt/eve/firecracker", descriptors=held)
        clock[0] += 5
        watch.poll()
        clock[0] += 5
        assert [vm.pid for vm in watch.poll().doubted] == [60]

    def test_a_warm_micro_vm_appears_when_it_is_configured(self, tree, clock):
        watch = Watch(tree)
        add_process(tree, 60, ["firecracker"], exe="/usr/bin/firecracker")
        watch.poll()
        clock[0] += 3600
        assert [vm.pid for vm in watch.poll().doubted] == [60]
        held = ["anon_inode:kvm-vm"]
        add_process(tree, 60, ["firecracker"], exe="/usr/bin/firecracker", descriptors=held)
        clock[0] += 10
        assert self.seen(watch.poll()) == ([60], [])

    def test_what_may_not_be_read_is_told_of_after_a_while(self, tree, clock, monkeypatch):
        """Recording it fails with the privilege that is missing: better than to leave it out."""
        monkeypatch.setattr(discover, "runs_vm", lambda vm, proc: None)
        watch = Watch(tree)
        assert self.seen(watch.poll()) == ([], [])
        clock[0] += 5
        assert self.seen(watch.poll()) == ([50], [])

    def test_a_vm_that_ends_before_it_was_told_of_is_never_told_of(self, tree, clock):
        watch = Watch(tree)
        add_process(tree, 60, [QEMU, "-name", "b"], exe=QEMU)
        watch.poll()
        shutil.rmtree(tree / "60")
        clock[0] += 10
        assert self.seen(watch.poll()) == ([], [])

    def test_a_shell_that_becomes_a_vmm_is_noticed_however_old_it_is(self, tree, clock):
        watch = Watch(tree)
        add_process(tree, 60, ["sh", "start-vm"], exe="/bin/sh")
        watch.poll()
        clock[0] += 3600
        watch.poll()
        add_process(tree, 60, [QEMU, "-name", "b"], exe=QEMU, maps=RAM)
        assert self.seen(watch.poll()) == ([60], [])

    def test_a_program_that_loads_libkrun_late_is_noticed(self, tree, clock):
        watch = Watch(tree)
        add_process(tree, 60, ["crun"], exe="/usr/bin/crun")
        watch.poll()
        clock[0] += 30
        line = "7e0000000000-7e0000001000 r-xp 00000000 fe:00 12   /usr/lib64/libkrun.so.1\n"
        held = ["anon_inode:kvm-vm"]
        add_process(tree, 60, ["crun"], exe="/usr/bin/crun", maps=line + RAM, descriptors=held)
        assert self.seen(watch.poll()) == ([60], [])
