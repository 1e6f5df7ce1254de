"""The host's end of the guest agent: one method per operation, errors in the house's form.

What the guest says is untrusted: a line is at most 16 MiB, each answer has a deadline, and file
names from the guest cannot leave the directory they are copied to.
"""

import base64
import binascii
import json
import socket
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from lab.errors import AgentError, ChannelClosedError, GuestTimeoutError
from lab.guest_agent import READ_LIMIT_BYTES

LINE_LIMIT_BYTES = 16 << 20
DEFAULT_TIMEOUT_S = 30.0
T = TypeVar("T")


class GuestAgent:
    """Speaks to `lab/guest_agent.py` over a connected socket.

    Args:
        channel: The host's end; owned by the caller.
        last_words: Says what is known of a guest that does not answer, line by line.

    Attributes:
        timeout_s: Seconds an answer may take, on top of the time-out of what was asked.
        release: The guest's kernel release, once ready.
        python: The interpreter in the guest, once ready.
    """

    def __init__(
        self, channel: socket.socket, last_words: Callable[[], list[str]] = lambda: []
    ) -> None:
        self._channel = channel
        self._last_words = last_words
        self._pending = b""
        self._next_id = 0
        self.timeout_s = DEFAULT_TIMEOUT_S
        self.release = ""
        self.python = ""

    def wait_ready(self, timeout_s: float) -> None:
        """Wait for the agent's first line; after it `release` and `python` are known.

        Raises:
            GuestTimeoutError: It did not come in time.
            ChannelClosedError: The VM ended before.
        """
        hello = self._receive(time.monotonic() + timeout_s, "the guest to boot")
        self.release = str(hello.get("release"))
        self.python = str(hello.get("python"))

    def run(self, argv: list[str], timeout_s: float = DEFAULT_TIMEOUT_S) -> str:
        """Run a command in the guest and return its output, standard error included.

        Raises:
            AgentError: It cannot be run, ended with a status other than 0, or took too long.
        """
        done = _typed(self._ask("run", argv=argv, timeout_s=timeout_s), dict)
        status, output = done.get("status"), str(done.get("output"))
        if status != 0:
            what = f"the guest command {argv[0]} ended with status {status}"
            raise AgentError(what, reason=output[-2000:].strip())
        return output

    def spawn(self, argv: list[str], log: str) -> int:
        """Start a command in the guest, its output in the guest file `log`; returns its pid."""
        return _typed(self._ask("spawn", argv=argv, log=log), int)

    def signal(self, pid: int, name: str) -> bool:
        """Send a signal by name (`SIGINT`) to a spawned command; False if it had ended."""
        return bool(self._ask("signal", pid=pid, signal=name))

    def wait(self, pid: int, timeout_s: float) -> int | None:
        """Wait for a spawned command; None if it still runs when the time is over."""
        status = self._ask("wait", pid=pid, timeout_s=timeout_s)
        return None if status is None else _typed(status, int)

    def exists(self, path: str) -> bool:
        """Say whether a guest path exists."""
        return bool(self._ask("exists", path=path))

    def list_files(self, path: str) -> dict[str, int]:
        """Return the size in bytes of each file below a guest directory, by relative path."""
        return _whole_numbers(self._ask("list", path=path))

    def counters(self) -> dict[str, int]:
        """Return the guest's `balloon_*_pages` and `Mem*_bytes` counters."""
        return _whole_numbers(self._ask("counters"))

    def read_file(self, path: str, limit_bytes: int = 64 << 20) -> bytes:
        """Return a guest file's content.

        Raises:
            AgentError: It cannot be read, or is longer than `limit_bytes`.
        """
        content = bytearray()
        while True:
            text = self._ask("read", path=path, offset=len(content), length=READ_LIMIT_BYTES)
            part = _decode(text)
            content += part
            if len(content) > limit_bytes:
                raise AgentError(f"the guest file {path} is longer than {limit_bytes} bytes")
            if len(part) < READ_LIMIT_BYTES:
                return bytes(content)

    def copy_out(self, source: str, target: Path, limit_bytes: int = 1 << 30) -> None:
        """Copy a guest directory to a new host directory.

        Args:
            source: Directory in the guest.
            target: Directory to make; must not exist.
            limit_bytes: Most that may be copied in all.

        Raises:
            AgentError: It cannot be read, is too large, or names a path outside itself.
        """
        sizes = self.list_files(source)
        if sum(sizes.values()) > limit_bytes:
            raise AgentError(f"the guest directory {source} holds more than {limit_bytes} bytes")
        target.mkdir(parents=True)
        left_bytes = limit_bytes
        for name in sorted(sizes):
            relative = PurePosixPath(name)
            if relative.is_absolute() or ".." in relative.parts:
                raise AgentError(f"the guest names a file outside its directory: {name!r}")
            content = self.read_file(f"{source}/{name}", left_bytes)
            left_bytes -= len(content)
            place = target / relative
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(content)
            except (OSError, ValueError) as error:
                raise AgentError(
                    f"cannot keep the guest's file {name!r}", reason=str(error)
                ) from error

    def _ask(self, op: str, **arguments: Any) -> Any:
        self._next_id += 1
        # The guest keeps its own time-out; the host allows for a busy machine on top.
        timeout_s = float(arguments.get("timeout_s", 0)) + self.timeout_s
        deadline = time.monotonic() + timeout_s
        request = {"id": self._next_id, "op": op, **arguments}
        self._channel.settimeout(timeout_s)
        try:
            self._channel.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise ChannelClosedError("the guest agent is gone", reason=str(error)) from error
        reply = self._receive(deadline, f"the guest to answer {op!r}")
        while reply.get("id") != self._next_id:
            reply = self._receive(deadline, f"the guest to answer {op!r}")
        if "error" in reply:
            raise AgentError(f"the guest could not {op}", reason=str(reply["error"]))
        return reply.get("result")

    def _receive(self, deadline: float, awaited: str) -> dict[str, Any]:
        line = self._read_line(deadline, awaited)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AgentError(
                "the guest sent something that is not JSON", reason=str(error)
            ) from error
        if not isinstance(message, dict):
            raise AgentError("the guest sent something that is not an object")
        return message

    def _read_line(self, deadline: float, awaited: str) -> bytes:
        parts = [self._pending]
        size = len(self._pending)
        while b"\n" not in parts[-1]:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                raise self._too_late(awaited)
            self._channel.settimeout(left_s)
            try:
                data = self._channel.recv(1 << 20)
            except TimeoutError as error:
                raise self._too_late(awaited) from error
            except OSError as error:
                raise ChannelClosedError("the guest agent is gone", reason=str(error)) from error
            if not data:
                raise ChannelClosedError("the guest agent is gone", reason="its end was closed")
            parts.append(data)
            size += len(data)
            if size > LINE_LIMIT_BYTES:
                raise AgentError(f"the guest sent a line longer than {LINE_LIMIT_BYTES} bytes")
        line, _, self._pending = b"".join(parts).partition(b"\n")
        return line

    def _too_late(self, awaited: str) -> GuestTimeoutError:
        lines = "\n    ".join(self._last_words())
        reason = (
            f"its console and its vCPUs say:\n    {lines}" if lines else "nothing is heard of it"
        )
        return GuestTimeoutError(f"waited in vain for {awaited}", reason=reason)


def _typed(value: Any, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise AgentError("the guest's answer has the wrong form", reason=f"{value!r:.200}")
    return value


def _whole_numbers(value: Any) -> dict[str, int]:
    return {name: _typed(number, int) for name, number in _typed(value, dict).items()}


def _decode(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise AgentError(
            "the guest sent a file part that is not base64", reason=str(error)
        ) from error
