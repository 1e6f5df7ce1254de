"""What a lab VM is made of, and the QEMU command line that says so."""

from dataclasses import dataclass
from pathlib import Path

from lab.guest_agent import PORT_NAME
from lab.pairs import Kernel, Qemu

MIB = 1 << 20
_KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off random.trust_cpu=on "
    "cryptomgr.notests raid=noautodetect rcupdate.rcu_expedited=1 no_timer_check "
    # An emulated CPU's time-stamp counter is the host's; the kernel would else read a slow timer.
    "tsc=reliable"
)


# Emulated, a byte-wise string instruction takes as long for a byte as for a word, and a kernel that
# sees "erms" or "fsrm" clears and copies every page with them.
_EMULATED_CPU = "max,-erms,-fsrm"


@dataclass(frozen=True)
class VmOptions:
    """What to boot.

    Attributes:
        qemu: Emulator.
        kernel: Guest kernel.
        memory_bytes: Guest memory; a multiple of 1 MiB.
        vcpus: Number of virtual CPUs.
        accelerator: `tcg` or `kvm`.
        free_page_reporting: Offer the reporting queue.
        free_page_hint: Offer the queue for hints to a live migration.
        deflate_on_oom: Offer VIRTIO_BALLOON_F_DEFLATE_ON_OOM.
        boot_timeout_s: Seconds until the guest agent must have spoken.
        name: QEMU's `-name`, which the trace's manifest repeats.
    """

    qemu: Qemu
    kernel: Kernel
    memory_bytes: int = 2048 * MIB
    vcpus: int = 2
    accelerator: str = "tcg"
    free_page_reporting: bool = True
    free_page_hint: bool = True
    deflate_on_oom: bool = False
    boot_timeout_s: float = 120.0
    name: str = "aerostat-lab"


def qemu_command(
    options: VmOptions, image: Path, initramfs_fd: int, monitor_fd: int, agent_fd: int
) -> list[str]:
    """Return the command line of one VM.

    Args:
        options: What to boot.
        image: Root disk.
        initramfs_fd: Inherited descriptor of the first file system's archive.
        monitor_fd: Inherited, connected socket for QMP.
        agent_fd: Inherited, connected socket for the guest agent.
    """
    on = {True: "on", False: "off"}
    balloon = (
        f"virtio-balloon-pci,id=balloon0,deflate-on-oom={on[options.deflate_on_oom]}"
        f",free-page-reporting={on[options.free_page_reporting]}"
        # QEMU takes hints in a thread of its own, and refuses the feature without one.
        f",free-page-hint={on[options.free_page_hint]},iothread=hints"
    )
    kvm = options.accelerator == "kvm"
    argv = [str(options.qemu.binary), "-name", options.name, "-no-user-config", "-nodefaults"]
    for directory in options.qemu.data:
        argv += ["-L", str(directory)]
    argv += ["-machine", "pc", "-accel", "kvm" if kvm else "tcg,thread=multi"]
    argv += ["-cpu", "host" if kvm else _EMULATED_CPU, "-smp", str(options.vcpus)]
    argv += ["-m", f"{options.memory_bytes // MIB}M", "-display", "none", "-no-reboot"]
    argv += ["-kernel", str(options.kernel.image), "-initrd", f"/proc/self/fd/{initramfs_fd}"]
    argv += ["-append", _KERNEL_ARGUMENTS]
    argv += ["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]
    argv += ["-chardev", f"socket,id=monitor,fd={monitor_fd}"]
    argv += ["-mon", "chardev=monitor,mode=control"]
    argv += ["-chardev", f"socket,id=agent,fd={agent_fd}", "-device", "virtio-serial-pci"]
    argv += ["-device", f"virtserialport,chardev=agent,name={PORT_NAME}"]
    argv += ["-drive", f"if=none,id=root,format=raw,readonly=on,file={_escape(image)}"]
    argv += ["-device", "virtio-blk-pci,drive=root", "-object", "iothread,id=hints"]
    return [*argv, "-device", balloon]


def _escape(path: Path) -> str:
    """Double the commas, as QEMU's option syntax wants."""
    return str(path).replace(",", ",,")
