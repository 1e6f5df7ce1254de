"""Read, replay and compare balloon traces from Python; the same work the `aerostat` command does.

Everything is imported when it is first used, so `import aerostat` is quick and needs neither root,
nor BCC, nor a virtual machine.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.compare import compare
    from replay.results import load_results
    from replay.schedule import replay_trace
    from tracer.join import join
    from tracer.ledger import ledger
    from tracer.stages import stage_table
    from tracer.trace.reader import open_trace

__version__ = "0.1.0"

_HOME = {
    "compare": "replay.compare",
    "join": "tracer.join",
    "ledger": "tracer.ledger",
    "load_results": "replay.results",
    "open_trace": "tracer.trace.reader",
    "replay_trace": "replay.schedule",
    "stage_table": "tracer.stages",
}

__all__ = [
    "compare",
    "join",
    "ledger",
    "load_results",
    "open_trace",
    "replay_trace",
    "stage_table",
]


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    module = _HOME.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    value = getattr(importlib.import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
