"""What recording needs besides probe points: privileges, BCC, what the kernel is built with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

from tracer.diagnosis.checks import ENVIRONMENT, Check
from tracer.diagnosis.environment import Machine
from tracer.diagnosis.predict import RING_BUFFER_SINCE, memlock_obstacle
from tracer.engine.attachments import mount_tracefs
from tracer.engine.bpf_programs import EMPTY, PROG_TYPE_KPROBE, load_program
from tracer.engine.compiler import import_bcc
from tracer.engine.libbpf import Btf
from tracer.engine.privilege import (
    KERNEL_ADDRESSES,
    LOAD,
    PID_NAMESPACE_REMEDY,
    TRACEFS,
    UPROBE,
    VM_PROCESS,
    in_first_pid_namespace,
    lacking,
    names,
    remedy_for,
)
from tracer.errors import REPORT
from tracer.sites.guest_layout import DRIVER, kernel_symbol
from tracer.trace.errors import AerostatError


def check_requirements(machine: Machine) -> Iterator[Check]:
    """Check what is not a probe point.

    Args:
        machine: This machine, as its files describe it.
    """
    yield _capabilities(machine)
    yield _tried("BCC", import_bcc)
    yield _tried("BPF programs", _load_one)
    yield _kernel(machine)
    if machine.in_user_namespace:
        yield Check(
            ENVIRONMENT,
            "user namespace",
            proven=False,
            reason="capabilities of a user namespace do not count for BPF",
            remedy="run outside the container, or with --privileged --userns=host --pid=host",
        )
    if not in_first_pid_namespace():
        yield Check(
            ENVIRONMENT,
            "PID namespace",
            proven=False,
            reason="the kernel's programs see other process ids: no VM can be recorded from here",
            remedy=PID_NAMESPACE_REMEDY,
        )
    yield _lockdown(machine)
    yield _tried("kernel BTF", Btf, predicted=machine.has_btf)
    yield _tried("tracefs", mount_tracefs, predicted=machine.has_tracefs)
    if DRIVER.exists():
        yield _addresses()
    if memlock_obstacle(machine):
        yield Check(
            ENVIRONMENT,
            "locked memory",
            proven=False,
            reason=f"RLIMIT_MEMLOCK is {machine.memlock_bytes} bytes",
            remedy="ulimit -l unlimited",
        )


def _tried(name: str, attempt: Callable[[], object], *, predicted: bool | None = None) -> Check:
    try:
        attempt()
    except AerostatError as error:
        reason = f"{error.what}: {error.reason}" if error.reason else error.what
        return Check(
            ENVIRONMENT,
            name,
            predicted=predicted,
            proven=False,
            reason=reason,
            remedy=error.remedy or REPORT,
        )
    return Check(ENVIRONMENT, name, predicted=predicted, proven=True)


def _load_one() -> None:
    os.close(load_program(PROG_TYPE_KPROBE, EMPTY, "that does nothing"))


def _capabilities(machine: Machine) -> Check:
    missing = lacking(LOAD | UPROBE | VM_PROCESS | TRACEFS, machine.held)
    if not missing:
        return Check(ENVIRONMENT, "capabilities", proven=True)
    settings = ", ".join(f"{name}={value}" for name, value in machine.settings.items())
    return Check(
        ENVIRONMENT,
        "capabilities",
        proven=False,
        reason=f"user id {machine.user} lacks {names(missing)} ({settings})",
        remedy=remedy_for(missing),
    )


def _kernel(machine: Machine) -> Check:
    version = ".".join(map(str, machine.release))
    if machine.arch != "x86_64":
        return Check(
            ENVIRONMENT,
            "kernel",
            proven=False,
            reason=f"Linux {version} on {machine.arch}",
            remedy="record on an x86-64 machine",
        )
    if machine.release < RING_BUFFER_SINCE:
        return Check(
            ENVIRONMENT,
            "kernel",
            proven=False,
            reason=f"Linux {version} has no BPF ring buffer",
            remedy="boot Linux 5.8 or a later one",
        )
    return Check(ENVIRONMENT, "kernel", proven=True)


def _lockdown(machine: Machine) -> Check:
    if machine.lockdown == "confidentiality":
        return Check(
            ENVIRONMENT,
            "lockdown",
            proven=False,
            reason="the kernel is locked down for confidentiality: no kernel memory, no kprobes",
            remedy="boot without lockdown=confidentiality",
        )
    return Check(ENVIRONMENT, "lockdown", proven=True)


def _addresses() -> Check:
    """Addresses in the kernel: a guest's reports, hints and targets cannot be read without them."""
    if kernel_symbol("_text"):
        return Check(ENVIRONMENT, "kernel addresses", proven=True)
    missing = lacking(KERNEL_ADDRESSES)
    return Check(
        ENVIRONMENT,
        "kernel addresses",
        proven=False,
        reason="/proc/kallsyms hides addresses: no free page reports, no hints, no targets",
        remedy=remedy_for(missing) if missing else "sysctl kernel.kptr_restrict=1",
    )
