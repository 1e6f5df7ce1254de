"""A small synchronous QMP client on top of the `qemu.qmp` library, which is asynchronous.

This is the only module that imports `qemu.qmp`, and it does so late: the library is the optional
extra `lab`.
"""

import asyncio
import socket
import threading
from types import TracebackType
from typing import Any, Self

from lab.errors import LabError

QMP_TIMEOUT_S = 20.0


class QmpClient:
    """Talks QMP over a connected socket, from any thread, one command at a time.

    Args:
        connection: The client's end of QEMU's monitor socket; owned by this object from here on.

    Raises:
        LabError: The library is missing, or QEMU does not greet in time.
    """

    def __init__(self, connection: socket.socket) -> None:
        try:
            from qemu.qmp import QMPClient, QMPError
        except ImportError as error:
            raise LabError(
                "the lab needs the Python package qemu.qmp",
                reason=str(error),
                remedy="pip install 'aerostat[lab]'",
            ) from error
        self._errors = (QMPError, OSError, EOFError, TimeoutError, asyncio.CancelledError)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True)
        self._thread.start()
        self._client = QMPClient("aerostat-lab")
        self._closed = False
        try:
            self._await(self._client.connect(connection), "greet")
        except LabError:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run one QMP command and return what QEMU answers.

        Raises:
            LabError: QEMU refused it, did not answer in time, or is gone.
        """
        return self._await(self._client.execute(command, arguments or None), command)

    def balloon(self, target_bytes: int) -> None:
        """Ask the guest to shrink or grow to `target_bytes` of memory; returns at once."""
        self.execute("balloon", value=target_bytes)

    def query_balloon(self) -> int:
        """Return the bytes of memory the guest has now, by the device's own count (`actual`)."""
        return int(self.execute("query-balloon")["actual"])

    def version(self) -> str:
        """Return QEMU's version, for example `7.2.22`."""
        numbers = self.execute("query-version")["qemu"]
        return f"{numbers['major']}.{numbers['minor']}.{numbers['micro']}"

    def registers(self) -> str:
        """Return the registers of every vCPU as QEMU's human monitor prints them."""
        command = "info registers -a"
        return str(self.execute("human-monitor-command", **{"command-line": command}))

    def quit(self) -> None:
        """Make QEMU end. That it closes the connection before it answers is not a failure."""
        try:
            self.execute("quit")
        except LabError as error:
            from qemu.qmp import ExecInterruptedError, StateError

            if not isinstance(error.__cause__, EOFError | ExecInterruptedError | StateError):
                raise

    def close(self) -> None:
        """Close the connection and end the thread; safe to call twice and after QEMU is gone."""
        if self._closed:
            return
        self._closed = True
        try:
            self._await(self._client.disconnect(), "disconnect")
        except LabError:
            pass  # QEMU is gone already, which is what closing is for.
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(QMP_TIMEOUT_S)
            self._loop.close()

    def _await(self, work: Any, command: str) -> Any:
        async def bounded() -> Any:
            return await asyncio.wait_for(work, QMP_TIMEOUT_S)

        future = asyncio.run_coroutine_threadsafe(bounded(), self._loop)
        try:
            return future.result(QMP_TIMEOUT_S + 5)
        except self._errors as error:
            reason = str(error) or type(error).__name__
            raise LabError(f"QEMU's monitor failed at {command!r}", reason=reason) from error
