"""Decides between KVM and emulation by booting a guest, and remembers the answer until a reboot.

That /dev/kvm exists, or even creates virtual CPUs, proves nothing: on some nested hosts a guest
hangs right after its firmware. Only a guest whose agent speaks counts.
"""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from lab.cache import cache_lock
from lab.errors import LabError
from lab.qemu_command import VmOptions
from lab.vm import LabVm
from tracer.trace.progress import Progress, silent

KVM_BOOT_TIMEOUT_S = 15.0
_KVM = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def proven_accelerator(options: VmOptions, progress: Progress = silent) -> str:
    """Return `kvm` if a guest has booted with it on this machine since its last start, else `tcg`.

    Args:
        options: The VM wanted; its emulator and kernel are what the proof is for.
        progress: Told when a trial boot is needed.
    """
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return "tcg"
    subject = f"{_BOOT_ID.read_text()} {options.qemu.binary} {options.kernel.image}"
    key = hashlib.sha256(subject.encode()).hexdigest()[:16]
    with cache_lock("accelerator") as base:
        record = base / "accelerator"
        known = record.read_text().split() if record.exists() else []
        answers = dict(entry.split("=") for entry in known if "=" in entry)
        if answers.get(key) not in ("kvm", "tcg"):
            progress("try KVM")
            answers[key] = "kvm" if _boots(options) else "tcg"
            lines = [f"{name}={answer}\n" for name, answer in answers.items()]
            record.write_text("".join(lines[-16:]))
        return answers[key]


def _boots(options: VmOptions) -> bool:
    trial = replace(
        options, accelerator="kvm", boot_timeout_s=KVM_BOOT_TIMEOUT_S, name="aerostat-kvm-trial"
    )
    try:
        with LabVm(trial):
            return True
    except LabError:
        return False
