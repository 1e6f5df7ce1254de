"""free: tell the kernel that it may take the pages, and let it choose when."""

from __future__ import annotations

from replay.backings import Advice
from replay.plan import Context
from replay.strategies.request import Request


class Free(Request):
    """`request` with MADV_FREE: cheaper at once, and no memory comes back before it is needed.

    Where the guest writes to a page again before the kernel has taken it, the page stays, and no
    fault is needed. Private anonymous memory only.
    """

    name = "free"
    source = (
        "Alexander Duyck, free page reporting v17 (2020), an MADV_FREE variant; libkrun on macOS,"
        " devices/src/virtio/balloon (2026)"
    )

    def advice(self, context: Context) -> Advice:
        """MADV_FREE, wherever."""
        del context
        return Advice.FREE
