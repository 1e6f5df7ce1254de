"""The catalogue of probe points, as data: what each tells, and the ways to it by rising cost.

A point that no way reaches leaves nulls in the trace and a reason in its manifest. Costs are those
of docs/measuring.md; a capture stores what it measured itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """Mechanism of one way."""

    FENTRY = "fentry"
    FEXIT = "fexit"
    KPROBE = "kprobe"
    KRETPROBE = "kretprobe"
    UPROBE = "uprobe"
    TRACEPOINT = "tracepoint"
    RAW_TRACEPOINT = "raw tracepoint"


@dataclass(frozen=True, slots=True)
class Way:
    """One way to reach a point.

    Attributes:
        kind: Mechanism.
        target: Kernel function, `category:event`, raw event, or QEMU handler site.
        program: Function of the BPF source.
    """

    kind: Kind
    target: str
    program: str


@dataclass(frozen=True, slots=True)
class Point:
    """One logical probe point.

    Attributes:
        name: Word used in the manifest and by `aerostat doctor`.
        tells: What a trace holds because of it.
        required: Whether a capture makes no sense without it.
        ways: By rising cost; the first that attaches is used.
    """

    name: str
    tells: str
    required: bool
    ways: tuple[Way, ...]


def _entry(function: str, program: str) -> tuple[Way, ...]:
    return (Way(Kind.FENTRY, function, program), Way(Kind.KPROBE, function, program))


def _return(function: str, program: str) -> tuple[Way, ...]:
    return (Way(Kind.FEXIT, function, program), Way(Kind.KRETPROBE, function, program))


def _driver_call(name: str, tells: str, function: str, program: str) -> tuple[Point, Point]:
    return (
        Point(f"{name}-enter", tells, False, _entry(function, f"on_{program}_enter")),
        Point(f"{name}-exit", tells, False, _return(function, f"on_{program}_exit")),
    )


GUEST_POINTS: tuple[Point, ...] = (
    Point("send-enter", "requests: PFNs, send time", True, _entry("tell_host", "on_tell_enter")),
    Point("send-exit", "wake time", True, _return("tell_host", "on_tell_exit")),
    *_driver_call("work", "caller, allocation, config write", "update_balloon_size_func", "work"),
    *_driver_call("leak", "dequeue and free of a deflate", "leak_balloon", "leak"),
    *_driver_call("report", "free page reports", "virtballoon_free_page_report", "report"),
    *_driver_call("oom", "deflates for the OOM killer", "virtio_balloon_oom_notify", "oom"),
    *_driver_call("migrate", "page migrations", "virtballoon_migratepage", "migrate"),
    *_driver_call("remove", "the driver's removal", "remove_common", "remove"),
    *_driver_call("puff", "waits after a failed allocation", "msleep", "msleep"),
    Point("kick-exit", "notification's end", False, _return("virtqueue_kick", "on_kick_exit")),
    Point("ack", "time of the device's interrupt", False, _entry("balloon_ack", "on_ack")),
)
"""Probe points in the guest's kernel; tell_host is out of line from 5.10 to 7.2 at least."""


def _system_call(name: str) -> tuple[Point, Point]:
    return (
        Point(
            f"{name}-enter",
            f"{name} calls of a request",
            False,
            (
                Way(Kind.TRACEPOINT, f"syscalls:sys_enter_{name}", f"on_{name}_enter"),
                Way(Kind.RAW_TRACEPOINT, "sys_enter", "on_raw_enter"),
            ),
        ),
        Point(
            f"{name}-exit",
            f"result and time of {name} calls",
            False,
            (
                Way(Kind.TRACEPOINT, f"syscalls:sys_exit_{name}", "on_call_exit"),
                Way(Kind.RAW_TRACEPOINT, "sys_exit", "on_raw_exit"),
            ),
        ),
    )


HOST_CALL_POINTS: tuple[Point, ...] = (*_system_call("madvise"), *_system_call("fallocate"))
"""System calls that discard; attached for the details `discards` and `calls`."""


def host_request_points(handlers: int) -> tuple[Point, ...]:
    """Points inside the balloon's handlers of a QEMU.

    Args:
        handlers: How many handlers were found: 1, or 2 with free page reporting.
    """
    names = ("queues", "reporting")[:handlers]
    points = []
    for index, name in enumerate(names):
        required = index == 0
        # The end before the begin: a request that is seen to begin is then seen to end.
        points.append(
            Point(
                f"{name}-push",
                "requests: PFNs, end on the host",
                required,
                (Way(Kind.UPROBE, f"{index}:push", "on_push"),),
            )
        )
        points.append(
            Point(
                f"{name}-pop",
                "requests: begin on the host",
                required,
                (Way(Kind.UPROBE, f"{index}:pop", f"on_pop_{index}"),),
            )
        )
    return tuple(points)
