"""A /proc of our own making: the files of it that discovery reads, in the kernel's form."""

from collections.abc import Sequence
from pathlib import Path


def add_process(
    proc: Path,
    pid: int,
    arguments: Sequence[str | bytes],
    *,
    exe: str | None,
    start_ticks: int = 1000,
    parent: int = 1,
    namespace_pids: Sequence[int] = (),
    comm: str = "a) (b",
    maps: str = "",
    descriptors: Sequence[str] = (),
    stack: int = 0x7FFC00000000,
    flags: int = 0x400000,
) -> Path:
    """Write one process; exe None stands for a link that may not be read."""
    root = proc / str(pid)
    root.mkdir(parents=True, exist_ok=True)
    head = [parent, pid, pid, 0, -1, flags, *[0] * 10, 1, 0]
    numbers = [*head, start_ticks, 0, 0, 0, 1, 1, stack, 0]
    stat = f"{pid} ({comm}) S " + " ".join(str(number) for number in numbers)
    (root / "stat").write_text(stat + "\n")
    encoded = [part.encode() if isinstance(part, str) else part for part in arguments]
    (root / "cmdline").write_bytes(b"".join(part + b"\0" for part in encoded))
    pids = "\t".join(str(number) for number in namespace_pids or (pid,))
    (root / "status").write_text(f"Name:\t{comm}\nUid:\t0\t0\t0\t0\nNSpid:\t{pids}\n")
    (root / "maps").write_text(maps)
    (root / "fd").mkdir(exist_ok=True)
    for number, target in enumerate(descriptors):
        (root / "fd" / str(number)).symlink_to(target)
    if exe is not None:
        (root / "exe").unlink(missing_ok=True)
        (root / "exe").symlink_to(exe)
    return root


QEMU = "/usr/bin/qemu-system-x86_64"
UUID = "4dea22b3-1d52-d8f3-2516-782e98ab3fa0"

LIBVIRT = [
    QEMU,
    *("-name", "guest=web-1,debug-threads=on"),
    "-S",
    "-object",
    '{"qom-type":"secret","id":"masterKey0","format":"raw",'
    '"file":"/var/lib/libvirt/qemu/domain-3-web-1/master-key.aes"}',
    *("-machine", "pc-q35-7.2,usb=off,dump-guest-core=off,memory-backend=pc.ram"),
    *("-accel", "kvm"),
    *("-m", "size=8388608k"),
    *(
        "-object",
        '{"qom-type":"memory-backend-memfd","id":"pc.ram","share":true,"size":8589934592}',
    ),
    *("-smp", "4,sockets=4,cores=1,threads=1"),
    *("-uuid", UUID),
    "-no-user-config",
]
OPENSTACK = [
    QEMU,
    *("-name", "guest=instance-0000002a,debug-threads=on"),
    *("-object", "secret,id=masterKey0,format=raw,file=/var/lib/libvirt/qemu/domain-1-i/key.aes"),
    *("-machine", "pc-i440fx-4.2,accel=kvm,usb=off"),
    *("-m", "2048"),
    *("-uuid", UUID),
    "-smbios",
    "type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova,version=27.0.0,"
    f"serial={UUID},uuid={UUID},family=Virtual Machine",
]
KUBEVIRT = [
    "/usr/libexec/qemu-kvm",
    *("-name", "guest=shop_db-0,debug-threads=on"),
    "-S",
    "-object",
    '{"qom-type":"secret","id":"masterKey0","format":"raw",'
    '"file":"/var/run/kubevirt-private/libvirt/qemu/lib/domain-1-shop_db-0/master-key.aes"}',
    *("-machine", "pc-q35-rhel9.4.0,usb=off,memory-backend=pc.ram,acpi=on"),
    *("-accel", "kvm"),
    *("-m", "size=4194304k,slots=16,maxmem=16777216k"),
    *("-object", '{"qom-type":"memory-backend-ram","id":"pc.ram","size":4294967296}'),
    *("-smp", "2,maxcpus=8,sockets=4,dies=1,cores=2,threads=1"),
    *("-uuid", UUID),
    *("-smbios", f"type=1,manufacturer=KubeVirt,product=None,uuid={UUID},family=KubeVirt"),
]
PROXMOX = [
    "/usr/bin/kvm",
    *("-id", "112"),
    *("-name", "mail,debug-threads=on"),
    "-no-shutdown",
    *("-chardev", "socket,id=qmp,path=/var/run/qemu-server/112.qmp,server=on,wait=off"),
    *("-pidfile", "/var/run/qemu-server/112.pid"),
    "-daemonize",
    *("-smbios", f"type=1,uuid={UUID}"),
    *("-smp", "4,sockets=2,cores=2,maxcpus=4"),
    *("-m", "13312"),
    *("-object", "memory-backend-ram,id=ram-node0,size=13312M"),
    *("-numa", "node,nodeid=0,cpus=0-3,memdev=ram-node0"),
    *("-machine", "type=pc-i440fx-8.1+pve0"),
    *("-cpu", "kvm64,enforce,+kvm_pv_eoi"),
]
