"""Has memory of every kind discarded by every call, and asks the kernel what came of it."""

from pathlib import Path

from tests.standins.build import StandIn
from tracer.account.ledger import ledger
from tracer.trace.reader import Trace
from tracer.trace.schema import Call

PAGE = 4096
PAGES = 3000
FIRST = 10_000
MEMORY_BYTES = 256 << 20
DONTNEED, FREE, REMOVE, DONTNEED_LOCKED = 4, 8, 9, 24
COLD = 20
"""MADV_COLD: succeeds everywhere and gives nothing back."""
PUNCH, KEEP_SIZE = 3, 1
OVER = 0x10 | 0x20 | 0x02
"""MAP_FIXED | MAP_ANONYMOUS | MAP_PRIVATE."""

CALLS = {
    "dontneed": (Call.MADVISE, DONTNEED),
    "free": (Call.MADVISE, FREE),
    "remove": (Call.MADVISE, REMOVE),
    "locked": (Call.MADVISE, DONTNEED_LOCKED),
    "cold": (Call.MADVISE, COLD),
    "vector": (Call.PROCESS_MADVISE, DONTNEED),
    "punch": (Call.FALLOCATE, PUNCH),
    "reserve": (Call.FALLOCATE, KEEP_SIZE),
    "over": (Call.MMAP, OVER),
}
KINDS = {
    "anon": ("dontneed", "free", "locked", "cold"),
    "memfd": ("dontneed", "remove", "cold", "punch", "reserve"),
    "shmem": ("dontneed", "remove", "cold"),
    "file-private": ("dontneed", "locked", "cold", "punch"),
}
"""Calls that succeed there; QEMU makes no others, and no others of it are probed by themselves."""
BACKENDS = {
    "memfd": "memfd",
    "shmem": "ram,share=on",
    "file-private": "file,share=off",
}


def machine(backing: str, home: Path) -> tuple[str, ...]:
    if backing == "anon":
        return ("-m", "256M")
    where = f",mem-path={home / 'guest'}" if "file" in BACKENDS[backing] else ""
    memory = f"memory-backend-{BACKENDS[backing]},id=ram0,size={MEMORY_BYTES}{where}"
    return ("-machine", "q35,memory-backend=ram0", "-m", "256M", "-object", memory)


def held_pages(vm: StandIn, backing: str) -> int:
    """Pages that the kernel holds for the guest: of the process if private, else of the file."""
    if backing in ("anon", "file-private"):
        status = Path(f"/proc/{vm.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("RssAnon:")]
        return int(line.split()[1]) * 1024 // PAGE
    (part,) = vm.parts
    maps = Path(f"/proc/{vm.pid}/map_files")
    (link,) = [each for each in maps.iterdir() if each.name.startswith(f"{part['hva']:x}-")]
    return link.stat().st_blocks * 512 // PAGE


def inflate(vm: StandIn, backing: str, kind: str) -> int:
    """Have pages discarded by one kind of call; how many of them the kernel took back."""
    vm.send("touch", FIRST * PAGE, PAGES * PAGE)
    before = held_pages(vm, backing)
    vm.send("by", *map(int, CALLS[kind]))
    did = vm.send("inflate", FIRST, PAGES, 1)
    assert (did.failed, did.calls) == (0, PAGES)
    if kind == "free":
        return PAGES  # They go when the kernel wants some.
    # A few of the program's own come and go.
    gone = before - held_pages(vm, backing)
    assert min(abs(gone), abs(gone - PAGES)) < PAGES // 10
    return PAGES if gone > PAGES // 2 else 0


def discarded(trace: Trace) -> tuple[int | None, bool]:
    """What the ledger says of it, and whether that agrees with the requests."""
    (line,) = [line for line in ledger(trace).lines if line.name == "inflate: host discarded"]
    return line.pages, line.status == "equal"
