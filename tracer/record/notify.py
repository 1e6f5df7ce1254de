"""Tells systemd how the recorder is: the datagrams of sd_notify(3), without its library.

A message is lines of KEY=VALUE, sent to the socket that NOTIFY_SOCKET names: a path, or after `@`
an abstract name. Where the variable is not set nobody listens, and nothing is sent.
"""

import os
import socket
import time
from collections.abc import Mapping

_NS_PER_US = 1000


class Notifier:
    """Sends the recorder's state to its service manager.

    A message that cannot be delivered is dropped: no capture ends because nobody listens.

    Args:
        address: A path, or `@NAME`; None sends nothing.
        watchdog_ns: How long the manager waits for a sign of life; None if it does not wait.

    Attributes:
        watchdog_ns: As given.
    """

    def __init__(self, address: str | None, watchdog_ns: int | None = None) -> None:
        self.watchdog_ns = watchdog_ns
        self._address = address
        self._last_alive_ns: int | None = None
        self._status = ""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Notifier":
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, as systemd sets them.

        Args:
            environment: The variables; the process's own by default. They are left as they are.
        """
        address = environment.get("NOTIFY_SOCKET", "")
        interval = environment.get("WATCHDOG_USEC", "")
        meant = environment.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        watches = meant and interval.isascii() and interval.isdigit() and int(interval) > 0
        return cls(
            address if address[:1] in {"/", "@"} else None,
            int(interval) * _NS_PER_US if watches else None,
        )

    def ready(self, status: str) -> None:
        """Say that every probe is attached; with Type=notify the unit is active from now on."""
        self._status = status
        self._send(f"READY=1\nSTATUS={_line(status)}\nMAINPID={os.getpid()}")

    def status(self, status: str) -> None:
        """Set the line that `systemctl status` shows."""
        if status != self._status:
            self._status = status
            self._send(f"STATUS={_line(status)}")

    def alive(self) -> None:
        """Say that the loop still turns: call it every round, it sends at half the interval."""
        if self.watchdog_ns is None:
            return
        now_ns = time.monotonic_ns()
        if self._last_alive_ns is None or now_ns - self._last_alive_ns >= self.watchdog_ns // 2:
            self._last_alive_ns = now_ns
            self._send("WATCHDOG=1")

    def stopping(self, status: str) -> None:
        """Say that the recorder is closing its traces."""
        self._send(f"STOPPING=1\nSTATUS={_line(status)}")

    def _send(self, message: str) -> None:
        if self._address is None:
            return
        # An abstract name begins with a zero byte; `@` stands for it in the environment.
        address = f"\0{self._address[1:]}" if self._address[0] == "@" else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                sender.setblocking(False)
                sender.sendto(message.encode(errors="replace"), address)
        except OSError:
            pass


def _line(text: str) -> str:
    """One line: a name from outside must not send a key of its own."""
    return " ".join(text.split())[:500]
