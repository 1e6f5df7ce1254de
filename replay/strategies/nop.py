"""nop: take every request, do nothing."""

from __future__ import annotations

from replay.plan import Context
from replay.requests import Requests
from replay.strategies.base import Operations, Strategy


class Nop(Strategy):
    """Acknowledge and leave memory alone: what the harness itself costs."""

    name = "nop"
    source = "aerostat: the floor that every other result stands on"
    discards = False

    def operations(self, requests: Requests, context: Context) -> list[Operations]:
        """Decide on nothing."""
        del requests, context
        return []
