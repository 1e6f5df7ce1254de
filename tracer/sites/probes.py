"""The catalogue of probe points, as data: what each tells, and the ways to it by rising cost.

A point that no way reaches leaves nulls in the trace and a reason in its manifest. Costs are those
of docs/measuring.md; a capture stores what it measured itself.
"""

from __future__ import annotations

from collections.abc import Iterable
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


_ADD_OUT, _ADD_IN = "virtqueue_add_outbuf", "virtqueue_add_inbuf"
_STATS_ASK = "on_stats_request"
_TARGET, _GET = "changes of the target", "vp_get|vm_get"
"""Which of these reads a device's config depends on its transport; two are named vp_get."""

GUEST_POINTS: tuple[Point, ...] = (
    Point("send-enter", "requests: PFNs, send time", True, _entry("tell_host", "on_tell_enter")),
    Point("send-exit", "wake time", True, _return("tell_host", "on_tell_exit")),
    *_driver_call("work", "caller, allocation, config write", "update_balloon_size_func", "work"),
    *_driver_call("leak", "dequeue and free of a deflate", "leak_balloon", "leak"),
    *_driver_call("report", "free page reports", "virtballoon_free_page_report", "report"),
    *_driver_call("hint", "free page hints", "report_free_page_func", "hint"),
    Point("hint-id", "begin and end of hints", False, _entry(_ADD_OUT, "on_add_outbuf")),
    Point("hint-block", "hinted blocks", False, _entry(_ADD_IN, "on_add_inbuf")),
    *_driver_call("stats", "answers with statistics", "update_balloon_stats_func", "stats"),
    Point("stats-ask", "when they were asked for", False, _entry("stats_request", _STATS_ASK)),
    Point("target-enter", _TARGET, False, (Way(Kind.KPROBE, _GET, "on_target_enter"),)),
    Point("target-exit", _TARGET, False, (Way(Kind.KRETPROBE, _GET, "on_target_exit"),)),
    *_driver_call("oom", "deflates for the OOM killer", "virtio_balloon_oom_notify", "oom"),
    *_driver_call("migrate", "page migrations", "virtballoon_migratepage", "migrate"),
    *_driver_call("remove", "the driver's removal", "remove_common", "remove"),
    *_driver_call("puff", "waits after a failed allocation", "msleep", "msleep"),
    Point("kick-exit", "notification's end", False, _return("virtqueue_kick", "on_kick_exit")),
    Point("ack", "time of the device's interrupt", False, _entry("balloon_ack", "on_ack")),
)
"""Probe points in the guest's kernel; tell_host is out of line from 5.10 to 7.2 at least."""


def _system_call(name: str) -> tuple[Point, Point]:
    function = f"__x64_sys_{name}"
    # The raw one serves every call.
    returned = "on_vector" if name == "process_madvise" else "on_call"
    return (
        Point(
            f"{name}-enter",
            f"{name} calls of a request",
            False,
            (
                Way(Kind.FENTRY, function, f"on_{name}_fentry"),
                Way(Kind.KPROBE, function, f"on_{name}_kprobe"),
                Way(Kind.TRACEPOINT, f"syscalls:sys_enter_{name}", f"on_{name}_enter"),
                Way(Kind.RAW_TRACEPOINT, "sys_enter", "on_raw_enter"),
            ),
        ),
        Point(
            f"{name}-exit",
            f"result and time of {name} calls",
            False,
            (
                Way(Kind.FEXIT, function, f"{returned}_fexit"),
                Way(Kind.KRETPROBE, function, f"{returned}_kretprobe"),
                Way(Kind.TRACEPOINT, f"syscalls:sys_exit_{name}", f"{returned}_exit"),
                Way(Kind.RAW_TRACEPOINT, "sys_exit", "on_raw_exit"),
            ),
        ),
    )


HOST_CALL_POINTS: tuple[Point, ...] = (*_system_call("madvise"), *_system_call("fallocate"))
"""System calls that discard; attached for the details `discards` and `calls`."""

HOST_OTHER_CALL_POINTS: tuple[Point, ...] = (
    *_system_call("process_madvise"),
    *_system_call("mmap"),
)
"""System calls that QEMU does not discard with and other VMMs may; attached for those alone."""


def _event(name: str, tells: str, function: str, program: str) -> Point:
    return Point(name, tells, False, (Way(Kind.UPROBE, function, program),))


HOST_EVENT_POINTS: tuple[Point, ...] = (
    _event("target", "changes of the target", "qmp_balloon", "on_target"),
    _event("actual", "changes of actual", "qapi_event_send_balloon_change", "on_actual"),
    _event("run-state", "pause and migration", "runstate_set", "on_run_state"),
)
"""Functions that QEMU exports and that tell of the balloon or the VM; none is on a hot path."""

HANDLER_WORDS = ("queues", "reporting", "stats", "hint")
"""Points' names of each handler, in the order of enum aerostat_handler (bpf/records.h)."""


def host_request_points(handlers: Iterable[int]) -> tuple[Point, ...]:
    """Points inside the balloon's handlers of a QEMU.

    Args:
        handlers: Numbers of enum aerostat_handler, those that were found; 0 is required.
    """
    points = []
    for handler in handlers:
        name = HANDLER_WORDS[handler]
        is_required = handler == 0
        # The end before the begin: a request that is seen to begin is then seen to end.
        if name != "stats":
            push = (Way(Kind.UPROBE, f"{handler}:push", "on_push"),)
            points.append(
                Point(f"{name}-push", "requests: PFNs, end on the host", is_required, push)
            )
        pop = (Way(Kind.UPROBE, f"{handler}:pop", f"on_pop_{handler}"),)
        points.append(Point(f"{name}-pop", "requests: begin on the host", is_required, pop))
    return tuple(points)
