"""The two recorders of a lab session: one process in the guest, one thread on the host."""

import contextlib
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from lab.errors import LabError
from lab.guest_programs import keep_programs
from lab.vm import LabVm
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress

READY_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 120.0
_FINISHED = (0, 5)
"""Exit codes that leave a trace: complete, and complete but for named losses."""


class GuestRecorder:
    """`aerostat record --guest`, run in the guest from this checkout.

    Args:
        vm: A booted VM.
        name: Of its files in the guest; one for each recorder that runs at a time.
        probes: `fentry` or `kprobe` to insist on one of them.
    """

    def __init__(self, vm: LabVm, name: str = "guest", probes: str | None = None) -> None:
        self._agent = vm.agent
        self._pid: int | None = None
        self._bundle = f"/tmp/{name}.balloon"
        self._ready, self._log = f"/tmp/{name}.ready", f"/tmp/{name}-recorder.log"
        self._probes = [] if probes is None else ["--probes", probes]

    def start(self) -> None:
        """Start it; returns at once, long before its probes are attached."""
        self._agent.run(["/bin/sh", "-c", f"rm -rf {self._bundle} {self._ready}"])
        argv = [self._agent.python, "-m", "aerostat", "record", "--guest", "--quiet", "--force"]
        argv += [*self._probes, "-o", self._bundle, "--ready-file", self._ready]
        self._pid = self._agent.spawn(argv, self._log)

    def resident_bytes(self) -> int:
        """Return how much memory it has in the guest, by its VmRSS.

        Raises:
            AgentError: It has ended.
        """
        status = self._agent.read_file(f"/proc/{self._pid}/status").decode()
        found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.M)
        return int(found.group(1)) * 1024 if found else 0

    def wait_ready(self) -> None:
        """Wait until its probes are attached.

        Raises:
            LabError: It ended, or took too long; the reason is the last it said.
        """
        assert self._pid is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._agent.exists(self._ready):
            status = self._agent.wait(self._pid, 0.05)
            if status is not None:
                raise self._failed(f"ended with status {status} before it was ready")
            if time.monotonic() > deadline:
                raise self._failed(f"was not ready after {READY_TIMEOUT_S:.0f} s")

    def stop(self) -> None:
        """Interrupt it and wait for its clean end.

        Raises:
            LabError: It failed, or did not end.
        """
        assert self._pid is not None
        self._agent.signal(self._pid, "SIGINT")
        status = self._agent.wait(self._pid, STOP_TIMEOUT_S)
        if status is None:
            raise self._failed(f"did not end within {STOP_TIMEOUT_S:.0f} s of its interrupt")
        if status not in _FINISHED:
            raise self._failed(f"ended with status {status}")
        # Whatever keeps the next guest from starting sooner is no reason to lose this recording.
        with contextlib.suppress(AerostatError, OSError):
            keep_programs(self._agent)

    def copy_out(self, target: Path) -> None:
        """Copy the bundle it wrote to a new directory on the host."""
        self._agent.copy_out(self._bundle, target)

    def _failed(self, what: str) -> LabError:
        log = self._agent.read_file(self._log)[-3000:].decode(errors="replace").strip()
        return LabError(f"the guest's recorder {what}", reason=log or "it said nothing")


class HostRecorder:
    """`record_host` in a thread of its own.

    Args:
        record: Runs the capture until the event is set, and calls its second argument when every
            probe is attached.
    """

    def __init__(self, record: Callable[[threading.Event, Callable[[], None]], Path]) -> None:
        self._record = record
        self._stop = threading.Event()
        self._settled = threading.Event()
        self._ready = False
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="host-recorder", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(STOP_TIMEOUT_S)

    def wait_ready(self) -> None:
        """Wait until its probes are attached.

        Raises:
            AerostatError: What the capture raised, or it took too long.
        """
        if not self._settled.wait(READY_TIMEOUT_S):
            raise LabError(f"the host's recorder was not ready after {READY_TIMEOUT_S:.0f} s")
        if not self._ready:
            self._raise("ended before it was ready")

    def stop(self) -> None:
        """End the capture and wait for its trace to be closed.

        Raises:
            AerostatError: What the capture raised, or it did not end.
        """
        self._stop.set()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            raise LabError(f"the host's recorder did not end within {STOP_TIMEOUT_S:.0f} s")
        if self._error is not None:
            self._raise("failed")

    def _run(self) -> None:
        try:
            self._record(self._stop, self._on_ready)
        except BaseException as error:
            self._error = error
        finally:
            self._settled.set()

    def _on_ready(self) -> None:
        self._ready = True
        self._settled.set()

    def _raise(self, what: str) -> None:
        if isinstance(self._error, AerostatError):
            raise self._error
        raise LabError(f"the host's recorder {what}", reason=repr(self._error)) from self._error


@dataclass(frozen=True)
class HostCapture:
    """What the host side of a session is to record.

    Attributes:
        output: The bundle to write.
        detail: How much of the discards to keep (`requests`, `discards`, `calls`).
        force: Replace an existing bundle.
        scenario: Name for the manifest.
    """

    output: Path
    detail: str
    force: bool
    scenario: str


def host_recorder(vm: LabVm, capture: HostCapture, progress: Progress) -> HostRecorder:
    """Return a recorder of the host side of a booted VM, not yet started.

    Args:
        vm: The VM; its pid is traced and its monitor asked for `actual`.
        capture: What to record.
        progress: Told what the recorder does.
    """

    def record(stop: threading.Event, ready: Callable[[], None]) -> Path:
        from tracer.host_side.host import VmOptions, record_host
        from tracer.vms.vmm import inspect

        options = VmOptions(
            vmm=inspect(vm.pid),
            output=capture.output,
            detail=capture.detail,
            force=capture.force,
            ready=ready,
            actual_bytes=vm.qmp.query_balloon,
            vm_name=vm.options.name,
            scenario=capture.scenario,
        )
        record_host(options, progress, stop)
        return capture.output

    return HostRecorder(record)
