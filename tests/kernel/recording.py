"""Records a stand-in while a block runs, in a thread of this process."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.standins.build import StandIn
from tracer.host_side.host import VmOptions, record_host
from tracer.vms.vmm import inspect

WAIT_S = 180
"""Compiling and attaching takes a minute on a busy machine."""


@contextmanager
def recording(vm: StandIn, output: Path, **options: Any) -> Iterator[None]:
    """Record with VmOptions while the block runs; the trace is closed when it is left."""
    ready, stop = threading.Event(), threading.Event()
    failure: list[BaseException] = []

    def run() -> None:
        try:
            record_host(
                VmOptions(output, vmm=inspect(vm.pid), ready=ready.set, **options), stop=stop
            )
        except BaseException as error:
            failure.append(error)
            ready.set()

    thread = threading.Thread(target=run)
    thread.start()
    is_ready = ready.wait(WAIT_S)
    try:
        assert is_ready, "the recorder was not ready in time"
        if not failure:
            yield
    finally:
        stop.set()
        thread.join(WAIT_S)
    if failure:
        raise failure[0]
