"""Read, replay and compare balloon traces from Python; the same work the `aerostat` command does.

Everything is imported when it is first used, so `import aerostat` is quick and needs neither root,
nor BCC, nor a virtual machine.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from replay.compare import compare
    from replay.compare_traces import compare_traces
    from replay.pauses import pauses
    from replay.results_file import load_results, save_results
    from replay.schedule import ReplayOptions
    from replay.schedule import replay_trace as replay
    from tracer.account.join import join
    from tracer.account.ledger import ledger
    from tracer.account.stages import stage_table
    from tracer.trace.reader import open_trace

__version__ = "0.1.0"

__all__ = [
    "ReplayOptions",
    "compare",
    "compare_traces",
    "join",
    "ledger",
    "load_results",
    "open_trace",
    "pauses",
    "replay",
    "save_results",
    "stage_table",
]

_HOME = {
    "ReplayOptions": ("replay.schedule", "ReplayOptions"),
    "compare": ("replay.compare", "compare"),
    "compare_traces": ("replay.compare_traces", "compare_traces"),
    "join": ("tracer.account.join", "join"),
    "ledger": ("tracer.account.ledger", "ledger"),
    "load_results": ("replay.results_file", "load_results"),
    "pauses": ("replay.pauses", "pauses"),
    "open_trace": ("tracer.trace.reader", "open_trace"),
    "replay": ("replay.schedule", "replay_trace"),
    "save_results": ("replay.results_file", "save_results"),
    "stage_table": ("tracer.account.stages", "stage_table"),
}
"""Public name -> module and attribute."""


def __getattr__(name: str) -> Any:
    """Import a public name on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _HOME[name]
    value = getattr(import_module(module), attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
