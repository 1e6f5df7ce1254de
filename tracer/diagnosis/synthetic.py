"""A balloon handler of our own: machine code of the shape of QEMU's, to try the host's probes on.

It pops one element and pushes it, with no virtqueue behind it, so no VM is touched and none needed.
"""

from __future__ import annotations

import mmap
import struct

import numpy as np

from tracer.cost.machine_code import MachineCode, loop
from tracer.sites.host_probes import ELEMENT_LAYOUT, QemuSites
from tracer.sites.probes import HOST_EVENT_POINTS, host_request_points
from tracer.sites.recover import HANDLERS

PFNS = 256
"""Pages of one request: what Linux puts into one at most."""
_POP = b"\x48\x89\xf0"  # mov %rsi, %rax       as virtqueue_pop has returned
_AFTER_POP = b"\x74\x00"  # je                  the pop site
_BEFORE_PUSH = b"\x57\x48\x89\xd7"  # push %rdi; mov %rdx, %rdi
_PUSH = b"\xe8\0\0\0\0"  # call                 the push site: rdi = queue, rsi = element
_AFTER_PUSH = b"\x48\x83\xc4\x08\x5f"  # add $8, %rsp; pop %rdi
_GPA = 0x1000
_LISTS = 128


class SyntheticHandler:
    """The code, an element with one descriptor each way, and 256 PFNs.

    Raises:
        ProbeError: This system lets no process map code of its own.
    """

    def __init__(self) -> None:
        body = _POP + _AFTER_POP + _BEFORE_PUSH + _PUSH + _AFTER_PUSH
        self._code = MachineCode({"handle": loop(body)})
        self._memory = mmap.mmap(-1, 2 * mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self._address = int(np.frombuffer(self._memory, np.uint8).ctypes.data)
        self._fill()
        pop = self._code.offset("handle") + len(_POP)
        push = pop + len(_AFTER_POP + _BEFORE_PUSH)
        points = (*host_request_points(range(len(HANDLERS))), *HOST_EVENT_POINTS)
        targets = [way.target for point in points for way in point.ways]
        self.sites = QemuSites(
            exe=self._code.path,
            build_id=None,
            version=None,
            handlers=(),
            queue_index_offset_bytes=0,
            missing={},
            file_offsets={t: pop if t.endswith(":pop") else push for t in targets},
        )
        """Where every uprobe of the catalogue can be put."""

    def _fill(self) -> None:
        """Lay out, from the first byte: the element, its lists, and on the next page the PFNs."""
        pfns = self._address + mmap.PAGESIZE
        lists = self._address + _LISTS
        struct.pack_into("<QQQ", self._memory, _LISTS, _GPA, pfns, 4 * PFNS)
        for name in ("ELEM_OUT_NUM", "ELEM_IN_NUM"):
            struct.pack_into("<I", self._memory, ELEMENT_LAYOUT[name], 1)
        for name in ("ELEM_OUT_ADDR", "ELEM_IN_ADDR"):
            struct.pack_into("<Q", self._memory, ELEMENT_LAYOUT[name], lists)
        for name in ("ELEM_OUT_SG", "ELEM_IN_SG"):
            struct.pack_into("<Q", self._memory, ELEMENT_LAYOUT[name], lists + 8)
        struct.pack_into(f"<{PFNS}I", self._memory, mmap.PAGESIZE, *range(PFNS, 0, -1))

    def handle(self, requests: int) -> None:
        """Pop and push so many requests of 256 falling PFNs, in this thread."""
        queue = self._address + mmap.PAGESIZE - 8  # Zeroes: index 0, the inflate queue.
        self._code.call("handle", requests, self._address, queue)

    def close(self) -> None:
        """Unmap it; no probe may be on it any more."""
        self._code.close()
        self._memory.close()
