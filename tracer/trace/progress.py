"""How long work tells its caller how far it is; libraries never print."""

from typing import Protocol


class Progress(Protocol):
    """Called with the phase's name, what is done, and the total where one is known."""

    def __call__(self, phase: str, done: int = 0, total: int | None = None) -> None:
        """Report `done` of `total` units of `phase`."""


def silent(phase: str, done: int = 0, total: int | None = None) -> None:
    """Report nothing: the default where a caller passes no progress."""
