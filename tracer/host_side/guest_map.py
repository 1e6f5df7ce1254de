"""Where a guest's memory lies while it is recorded: looked up once, then learned from requests."""

from __future__ import annotations

import contextlib
import time

import numpy as np
import numpy.typing as npt

from tracer.engine.decode_calls import call_descriptors
from tracer.engine.ring import Records
from tracer.errors import ProcessError
from tracer.trace.manifest import Region
from tracer.trace.schema import PFN_SHIFT, Call
from tracer.vms.guest_files import FileRegions, files_of_regions, gpa_of_offsets
from tracer.vms.learned_map import LearnedMap
from tracer.vms.memory_map import find_memory
from tracer.vms.translation import MemoryMap
from tracer.vms.vmm import Vmm

_LOOK_AGAIN_S = 10.0
"""A guest may name what it likes, so its VMM's mappings are not read for every request."""


class GuestMap:
    """GPAs of one VM's requests and calls.

    Args:
        vmm: The VM.

    Attributes:
        spans: HVAs, half-open, that a discard must touch to be the guest's.
        descriptors: Descriptors in the VMM of the files behind them.
        misplaced: Requests whose own descriptor contradicts the map, as it was then.

    Raises:
        ProcessError: The process is gone, or its mappings may not be read.
    """

    def __init__(self, vmm: Vmm) -> None:
        self._vmm = vmm
        self._elsewhere = 0
        self._next_look_s = 0.0
        memory = find_memory(vmm)
        self._learned = LearnedMap(memory)
        self.spans = tuple((extent.start, extent.end) for extent in memory.likely)
        whole = tuple(
            extent.region("extent", 0, extent.start, extent.length_bytes)
            for extent in memory.likely
        )
        self.descriptors = frozenset(files_of_regions(vmm.pid, whole))
        self.misplaced = 0
        self._files: FileRegions = {}
        self._settle()

    def _settle(self) -> None:
        regions = self._learned.regions
        self._map = MemoryMap(regions)
        # A VM that has ended is learned from to its last request; its files are as they were.
        with contextlib.suppress(ProcessError):
            self._files = files_of_regions(self._vmm.pid, regions)
        spans = [(region.gpa, region.gpa + region.length_bytes) for region in regions]
        self._pfns = np.array(spans, np.int64).reshape(-1, 2) >> PFN_SHIFT

    @property
    def regions(self) -> tuple[Region, ...]:
        """What is certain by now."""
        return self._map.regions

    @property
    def reason(self) -> str:
        """Why the map is not certain; empty where it is."""
        return self._learned.reason

    def learn(self, requests: Records) -> None:
        """Look at where each request's own descriptor lies.

        Args:
            requests: HOST_REQUEST[n].
        """
        named = requests["total"] > 0
        if not named.any():
            return
        hva, gpa = requests["first_hva"][named], requests["first_gpa"][named]
        expected, given = self._map.gpa_of_hva(hva), gpa.astype(np.int64)
        wrong = (expected >= 0) & (expected != given)
        self.misplaced += int(np.count_nonzero(wrong))
        changed = self._learned.add(given, hva.astype(np.int64))
        if self._look_again() or changed:
            self._settle()

    def _look_again(self) -> bool:
        """Look for memory that was plugged since, where a request came from none that is known."""
        now_s = time.monotonic()
        if self._learned.elsewhere <= self._elsewhere or now_s < self._next_look_s:
            return False
        self._next_look_s = now_s + _LOOK_AGAIN_S
        with contextlib.suppress(ProcessError):
            changed = self._learned.refresh(find_memory(self._vmm))
            self._elsewhere = self._learned.elsewhere
            return changed
        return False

    def guest_pfns(self) -> npt.NDArray[np.int64] | None:
        """First PFN and end of each region, int64[m, 2]; None where the map is not certain."""
        return self._pfns if self._learned.is_certain else None

    def gpa_of_calls(self, calls: Records) -> npt.NDArray[np.int64]:
        """Translate where each call begins.

        Args:
            calls: HOST_CALLS[n] or HOST_CALL[n].

        Returns:
            int64[n], -1 where it is not guest memory, or not known.
        """
        by_address = self._map.gpa_of_hva(calls["address"])
        is_file = calls["call"] == Call.FALLOCATE
        if not is_file.any():
            return by_address
        by_file = gpa_of_offsets(self._files, call_descriptors(calls), calls["address"])
        return np.where(is_file, by_file, by_address)
