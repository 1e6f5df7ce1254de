"""One lab virtual machine: a QEMU process, its monitor, its guest agent, its console.

The machine owns nothing on disk. Monitor and agent are socket pairs and the first file system is an
anonymous memory file, all inherited by QEMU; the root disk is shared and read-only. So nothing can
be left behind but the process itself, and the kernel kills that when the thread that booted it
ends: keep that thread alive as long as the VM.
"""

import contextlib
import os
import shutil
import socket
import subprocess
import threading
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Self

import lab
from lab.agent import GuestAgent
from lab.errors import GuestTimeoutError, LabError, VmDiedError
from lab.image import ensure_root_image
from lab.initramfs import build_initramfs
from lab.qemu_command import VmOptions, qemu_command
from lab.qmp import QmpClient
from tracer.trace.errors import AerostatError
from tracer.trace.progress import Progress, silent

_ENDING_S = 2.0
_LAST_LINES = 20
_LOOKS, _LOOK_S = 3, 0.1
CONSOLE_LINES = 200
CONSOLE_LINE_BYTES = 1000
QUIT_TIMEOUT_S = 5.0


class LabVm:
    """Boots on entering the context; leaves no process behind when it is left.

    Args:
        options: What to boot.
        progress: Told about building the disk and booting.

    Attributes:
        agent: The guest agent, once booted.
        qmp: QEMU's monitor, once booted.
    """

    agent: GuestAgent
    qmp: QmpClient

    def __init__(self, options: VmOptions, progress: Progress = silent) -> None:
        self.options = options
        self._progress = progress
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        self._qmp: QmpClient | None = None
        self._console: deque[str] = deque(maxlen=CONSOLE_LINES)
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self._boot()
        except LabError as error:
            self.close()
            raise self._died("the lab VM did not boot", error) from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        died = isinstance(error, LabError) and self._is_ending()
        self.close()
        if died and isinstance(error, LabError):
            raise self._died("the lab VM died", error) from error

    @property
    def pid(self) -> int:
        """QEMU's process id.

        Raises:
            LabError: The VM was never booted, or is closed.
        """
        if self._process is None:
            raise LabError("the lab VM is not running")
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether QEMU still runs."""
        return self._process is not None and self._process.poll() is None

    def _is_ending(self) -> bool:
        """Whether QEMU has ended, or does so at once: its monitor goes before the process does."""
        if self._process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_ENDING_S)
        return not self.is_running

    def console(self) -> list[str]:
        """Return the last lines of the guest's console and of QEMU's own messages."""
        return list(self._console)

    def last_words(self) -> list[str]:
        """Say of a guest that does not answer what its console said, and what its vCPUs do.

        The vCPUs are looked at more than once: one that waits stands still, one that loops may not.
        """
        words = self.console()[-_LAST_LINES:]
        with contextlib.suppress(LabError):
            for _ in range(_LOOKS):
                registers = self._qmp.registers() if self._qmp is not None else ""
                words += [line for line in registers.splitlines() if "IP=" in line]
                time.sleep(_LOOK_S)
        return words

    def close(self) -> None:
        """End QEMU and release everything; safe at any time, and twice."""
        try:
            if self._qmp is not None and self.is_running:
                self._qmp.quit()
        except LabError:
            pass  # A monitor that does not obey is what the kill below is for.
        finally:
            self._reap()

    def _boot(self) -> None:
        image = ensure_root_image(self._progress)
        self._progress("boot")
        project = Path(lab.__file__).parents[1]
        monitor, monitor_end = socket.socketpair()
        self._channel, agent_end = socket.socketpair()
        initramfs = os.memfd_create("aerostat-initramfs")
        with monitor_end, agent_end, os.fdopen(initramfs, "wb") as packed:
            packed.write(build_initramfs(self.options.kernel, project))
            packed.flush()
            fds = (initramfs, monitor_end.fileno(), agent_end.fileno())
            try:
                self._start(qemu_command(self.options, image, *fds), fds)
            except BaseException:
                monitor.close()
                raise
        self._qmp = self.qmp = QmpClient(monitor)
        self.agent = GuestAgent(self._channel, self.last_words)
        self.agent.wait_ready(self.options.boot_timeout_s)

    def _start(self, argv: list[str], fds: tuple[int, ...]) -> None:
        if shutil.which("setpriv") is None:
            raise AerostatError("the lab needs setpriv", remedy="apt install util-linux")
        self._process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **self.options.qemu.environment()},
            pass_fds=fds,
            # Ctrl-C is for this program, which ends the recorders before the VM.
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read_console, name="console", daemon=True)
        self._reader.start()

    def _read_console(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := self._process.stdout.readline(CONSOLE_LINE_BYTES):
            text = "".join(c for c in line.decode(errors="replace") if c.isprintable())
            if text:
                self._console.append(text)

    def _reap(self) -> None:
        process = self._process
        if process is not None:
            try:
                process.wait(QUIT_TIMEOUT_S if self._qmp is not None else 0)
            except subprocess.TimeoutExpired:
                pass
            finally:
                process.kill()
                process.wait()
        if self._qmp is not None:
            self._qmp.close()
        if self._channel is not None:
            self._channel.close()
        if self._reader is not None:
            self._reader.join(QUIT_TIMEOUT_S)
        if process is not None and process.stdout is not None:
            process.stdout.close()

    def _died(self, what: str, error: LabError) -> VmDiedError:
        status = None if self._process is None else self._process.returncode
        console = "\n    ".join(self.console()[-12:])
        reason = f"{error.what}: {error.reason or 'no reason given'}; QEMU's status {status}"
        if console and not isinstance(error, GuestTimeoutError):  # which has said it already
            reason += f"; the console's last lines:\n    {console}"
        return VmDiedError(what, reason=reason, remedy=error.remedy)
