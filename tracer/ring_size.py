"""How large a VM's rings have to be, from how fast this machine can discard."""

from __future__ import annotations

from tracer import decode
from tracer.capture import DRAIN_LONGEST_S

_HEADER_BYTES = 8
_CALLS_WAIT_S = 0.02
"""With a record per page a ring fills fifty times as fast, so it is looked at more often."""
_SMALLEST_BYTES, _LARGEST_BYTES = 256 << 10, 16 << 20
_MARGIN = 4
_DISCARD_NS = 340
"""Discard of one untouched page, the cheapest there is (docs/measuring.md)."""


def longest_wait_s(detail: str) -> float:
    """How long the rings of a capture may go undrained."""
    return _CALLS_WAIT_S if detail == "calls" else DRAIN_LONGEST_S


def ring_bytes(detail: str, discard_ns: float = _DISCARD_NS) -> int:
    """Choose the size of a VM's rings: room for what one thread can discard between two drains.

    Args:
        detail: requests, discards or calls.
        discard_ns: What this machine takes to discard one page.

    Returns:
        Bytes, a power of two between 256 KiB and 16 MiB.
    """
    pages = longest_wait_s(detail) * 1e9 / discard_ns
    request_bytes = _HEADER_BYTES + decode.HOST_REQUEST.itemsize
    call_bytes = _HEADER_BYTES + decode.HOST_CALLS.itemsize
    per_page = call_bytes if detail == "calls" else request_bytes / decode.PFNS
    wanted = int(_MARGIN * pages * per_page)
    return min(max(1 << (wanted - 1).bit_length(), _SMALLEST_BYTES), _LARGEST_BYTES)
