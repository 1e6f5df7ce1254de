"""The fuzzer's engine: atheris, which guides libFuzzer by the branches of instrumented modules."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager

import atheris


def instrumented(*packages: str) -> AbstractContextManager[None]:
    """Instrument what is imported within, so far as it belongs to these packages."""
    context: AbstractContextManager[None] = atheris.instrument_imports(
        include=list(packages), enable_loader_override=False
    )
    return context


def explore(one: Callable[[bytes], None]) -> None:
    """Feed `one` with inputs until libFuzzer's options say stop, or an exception escapes it."""
    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
