"""Programs that the compiler or the kernel refuses: one clear error, one remedy."""

import ctypes
import errno
import os
import struct
import sys
from pathlib import Path

import pytest

from tests.kernel.as_user import failure
from tracer.engine import libbpf
from tracer.engine.bpf_programs import PROG_TYPE_KPROBE, load_program
from tracer.engine.libbpf import Btf
from tracer.engine.loader import EmptyPrograms, Program
from tracer.engine.privilege import LOAD
from tracer.errors import REPORT, BccError, ProbeError
from tracer.sites import host_probes

NR_BPF = 321
PR_SET_SECCOMP, PR_SET_NO_NEW_PRIVS = 22, 38
SECCOMP_MODE_FILTER = 2
EXIT_WITHOUT_RESULT = bytes.fromhex("9500000000000000")


def test_the_verifiers_last_word_is_the_reason():
    with pytest.raises(ProbeError) as caught:
        load_program(PROG_TYPE_KPROBE, EXIT_WITHOUT_RESULT, "on_nothing")
    assert "R0 !read_ok" in caught.value.reason
    assert "refuses the BPF program on_nothing" in caught.value.what
    assert caught.value.remedy


def test_a_source_that_does_not_compile_says_where(capfd):
    with pytest.raises(BccError) as caught:
        Program(("guest_threads.bpf.c",), {})
    assert caught.value.what == "cannot compile guest_threads.bpf.c"
    assert "error: use of undeclared identifier 'VB_NUM_PAGES'" in caught.value.reason
    assert caught.value.remedy
    assert capfd.readouterr().err == ""


def test_a_user_without_capabilities_is_told_which():
    text = failure((), host_probes.compile_host)
    assert "does not let this process make BPF maps" in text
    assert "lacks CAP_PERFMON, CAP_BPF" in text


def forbid_bpf() -> None:
    """Have a seccomp filter answer EPERM to bpf(2), as that of a container does."""
    load_number, jump_if_equal, answer = 0x20, 0x15, 0x06
    steps = (
        (load_number, 0, 0, 0),  # of the system call, in struct seccomp_data
        (jump_if_equal, 0, 1, NR_BPF),
        (answer, 0, 0, 0x00050000 | errno.EPERM),
        (answer, 0, 0, 0x7FFF0000),  # allow
    )
    text = ctypes.create_string_buffer(b"".join(struct.pack("<HBBI", *step) for step in steps))
    program = struct.pack("<HxxxxxxQ", len(steps), ctypes.addressof(text))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert libc.prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) == 0


@pytest.mark.parametrize(
    "use",
    [
        host_probes.compile_host,
        lambda: load_program(PROG_TYPE_KPROBE, EXIT_WITHOUT_RESULT, "on_nothing"),
    ],
    ids=["maps", "program"],
)
def test_a_seccomp_filter_is_told_apart_from_missing_capabilities(use):
    def act():
        forbid_bpf()
        use()

    text = failure(LOAD, act)
    assert "a seccomp filter forbids bpf(2)" in text
    assert "seccomp=unconfined" in text


@pytest.fixture
def no_btf(tmp_path, monkeypatch):
    monkeypatch.setattr(libbpf, "_BTF_DIRECTORY", tmp_path)
    return tmp_path


def test_a_kernel_without_btf_is_one_clear_error(no_btf):
    with pytest.raises(ProbeError) as caught:
        Btf()
    assert "no type information" in caught.value.what
    assert str(no_btf / "vmlinux") in caught.value.reason
    assert "CONFIG_DEBUG_INFO_BTF" in caught.value.remedy


@pytest.mark.parametrize(
    ("attach", "reason", "remedy"),
    [
        (
            lambda p: p.attach_uprobe("empty", Path("/nowhere/qemu"), 0, os.getpid()),
            "there is no such file",
            "see that the VM still runs",
        ),
        (
            lambda p: p.attach_tracepoint("empty", "syscalls", "sys_enter_nothing"),
            "the kernel has no such event",
            "CONFIG_FTRACE_SYSCALLS=y",
        ),
        (
            lambda p: p.attach_raw_tracepoint("empty", "nothing"),
            "the kernel has no such event",
            "CONFIG_FTRACE_SYSCALLS=y",
        ),
        (
            lambda p: p.attach_uprobe("empty", Path(sys.executable), 1 << 40, os.getpid()),
            "Invalid argument",
            REPORT,
        ),
    ],
)
def test_a_probe_that_the_kernel_refuses_has_a_next_step(attach, reason, remedy):
    """Whoever asks: no capability is missing here."""
    with EmptyPrograms() as programs, pytest.raises(ProbeError) as caught:
        attach(programs)
    assert caught.value.reason == reason
    assert remedy in caught.value.remedy
