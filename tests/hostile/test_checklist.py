"""The checklist of bad input that a balloon device must survive: every entry is a test.

The entries are what went wrong in balloon devices of QEMU, cloud-hypervisor, Firecracker, crosvm
and libkrun, and in the patch of 2016, and what their drivers could send. Each is sent as raw bytes
to the device model over real memory (tests/hostile/machine.py): no crash, no touch outside the
model's memory, bounded time and memory, and every part that is left out counted by its reason.
"""

import ast
import re
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
CHAINS = """
    empty chain; 0-length descriptor; PFN array over several descriptors; device-writable descriptor
    on inflate; device-writable descriptor on deflate; descriptor crossing RAM; descriptor outside
    RAM; addr+len overflow; ring reset mid-request; chain in a circle; chain out of its table;
    indirect within indirect
"""
PFNS = """
    length not multiple of 4; more than 256 PFNs; PFN 0xFFFFFFFF; PFN 2^31 and above; PFN in MMIO
    hole; PFN in ROM; PFN at last page; duplicate PFNs in one request; same PFN inflated twice;
    deflated without inflate; inflate+deflate of one host page interleaved; PFN order descending;
    PFN order random; 1-PFN requests of migration
"""
RANGES = """
    length not multiple of 8; range nr 0 at end; nr 0 with extended count 0; count crossing end of
    RAM; count crossing a hole; count wrapping 2^64; data_len over payload; data_len under payload;
    data_len huge; data_len not multiple of 8; exactly 4096 pages; unknown cmd; unknown flag
"""
QUEUES = """
    report sg unaligned; report longer than block; report of mixed orders; report of 4 GiB-1;
    hint id mismatch; hint id replay; hint after stop; stats over 16 tags; stats unknown tag; stats
    second buffer before ack; stats not multiple of 10; inhibited mode
"""
BACKINGS = """
    backing page 2 MiB; backing page 1 GiB; backing page 64 KiB; read-only backing; private-file
    backing; ENOMEM from the syscall; EINVAL from the syscall; EBUSY from the syscall
"""

SCATTERLIST = """
    scatterlist empty chain; scatterlist 0-length descriptor; scatterlist device-readable
    descriptor; scatterlist range crossing end of RAM; scatterlist range crossing a hole;
    scatterlist range outside RAM; scatterlist range at last page; scatterlist addr+len
    overflow; scatterlist range of 4 GiB-1; scatterlist range unaligned; scatterlist more than
    32 ranges; scatterlist chain in a circle; scatterlist chain out of its table; scatterlist
    indirect within indirect; scatterlist ring reset mid request; scatterlist overlapping ranges
    in one request; scatterlist same range inflated twice; scatterlist deflated without inflate;
    scatterlist inflate+deflate of one host page interleaved; scatterlist order descending or
    random; scatterlist 1-page requests of migration; scatterlist inhibited mode; scatterlist
    backing page 2 MiB; scatterlist backing page 64 KiB; scatterlist shared and private file
    backing; scatterlist EINVAL from the syscall; scatterlist all of memory
"""


def entries() -> list[str]:
    text = ";".join((CHAINS, PFNS, RANGES, QUEUES, BACKINGS, SCATTERLIST))
    return [" ".join(entry.split()) for entry in text.split(";")]


def named(entry: str) -> str:
    """The name of an entry's test: its own words."""
    return "test_" + re.sub(r"[^a-z0-9]+", "_", entry.lower()).strip("_")


def by_file() -> dict[str, list[str]]:
    return {
        path.name: [
            node.name
            for node in ast.parse(path.read_text()).body
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        ]
        for path in sorted(HERE.glob("test_checklist_*.py"))
    }


def test_every_entry_is_a_test_and_every_test_an_entry() -> None:
    written = Counter(name for names in by_file().values() for name in names)
    assert written == Counter(map(named, entries()))
    assert len(entries()) == 86
