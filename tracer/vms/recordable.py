"""What can be recorded of a VM that runs, told from its program file and its mappings alone."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from tracer.errors import ProcessEndedError, ProcessError, SymbolError
from tracer.sites.host_probes import find_sites
from tracer.trace.manifest import Region
from tracer.vms.evidence import runs_vm
from tracer.vms.memory_map import GuestMemory, find_memory
from tracer.vms.vmm import Vmm

_UNLIKELY = (
    "unlikely to be a VM: neither a VM's descriptor nor memory of the size it states, so --all does"
    " not take it"
)


class Records(Enum):
    """How much of a VM's balloon can be seen from the host."""

    REQUESTS = "requests"
    DISCARDS = "discards"


class MapState(Enum):
    """What is known of a guest's memory map before anything is recorded."""

    KNOWN = "known"
    LEARNED = "learned"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Recordable:
    """What can be recorded of one VM; None where root alone could tell.

    Attributes:
        vmm: The VM.
        runs_vm: Whether its process shows a VM (tracer/vms/evidence.py); one that does not merely
            has a VMM's name, and is not taken where every VM is.
        records: REQUESTS: every request with its pages, and the discards. DISCARDS: the system
            calls on guest memory alone.
        handlers: The balloon's handlers that were found, by QEMU's names.
        memory_map: KNOWN; LEARNED from the first requests; or UNKNOWN: discards have no GPA.
        regions: What is certain of the map by now.
        reason: Why it is not more; empty where it is all.
    """

    vmm: Vmm
    runs_vm: bool | None
    records: Records | None
    handlers: tuple[str, ...]
    memory_map: MapState | None
    regions: tuple[Region, ...]
    reason: str


def look_at(vms: Sequence[Vmm]) -> list[Recordable]:
    """Say of each VM what can be recorded; one that has ended meanwhile is left out."""
    handlers: dict[tuple[int, int], tuple[tuple[str, ...], str]] = {}
    found = []
    for vmm in vms:
        try:
            status = vmm.program.stat()
        except FileNotFoundError:
            continue
        except OSError:
            found.append(_unreadable(vmm))
            continue
        key = (status.st_dev, status.st_ino)
        if key not in handlers:
            # Many VMs run one program, and it takes a second to read.
            handlers[key] = _handlers(vmm)
        with contextlib.suppress(ProcessEndedError):
            found.append(_recordable(vmm, *handlers[key]))
    return found


def _handlers(vmm: Vmm) -> tuple[tuple[str, ...], str]:
    if vmm.kind != "qemu":
        return (), f"requests of {vmm.kind} cannot be probed"
    try:
        sites = find_sites(vmm.pid)
    except SymbolError as error:
        return (), error.reason or error.what
    return tuple(handler.name for handler in sites.handlers), ""


def _recordable(vmm: Vmm, handlers: tuple[str, ...], reason: str) -> Recordable:
    records = Records.REQUESTS if handlers else Records.DISCARDS
    state: MapState | None
    try:
        memory = find_memory(vmm)
        state, regions = _map_state(memory, records), memory.regions
        map_reason = "" if state is MapState.KNOWN else f"memory map: {memory.reason}"
    except ProcessError as error:
        state, regions, map_reason = None, (), f"memory map: {error.reason}"
    evident = runs_vm(vmm)
    unlikely = "" if evident is not False else _UNLIKELY
    balloon = "" if _may_have_balloon(vmm) else "it has no balloon device"
    reasons = [unlikely, reason, map_reason, balloon]
    return Recordable(
        vmm, evident, records, handlers, state, regions, "; ".join(part for part in reasons if part)
    )


def _map_state(memory: GuestMemory, records: Records) -> MapState:
    if len(memory.candidates) == 1:
        return MapState.KNOWN
    return MapState.LEARNED if records is Records.REQUESTS else MapState.UNKNOWN


def _may_have_balloon(vmm: Vmm) -> bool:
    if vmm.kind != "qemu" or "-readconfig" in vmm.arguments:
        return True
    return any("virtio-balloon" in argument for argument in vmm.arguments)


def _unreadable(vmm: Vmm) -> Recordable:
    reason = "it belongs to another user" if os.geteuid() else "its program cannot be read"
    return Recordable(vmm, None, None, (), None, (), reason)
