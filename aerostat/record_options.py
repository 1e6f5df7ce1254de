"""The options of `aerostat record`, in groups, and what the recorder is told because of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from aerostat.options import PATH, duration, json_option, size

Command = TypeVar("Command", bound=Callable[..., Any])
NS_PER_S = 1_000_000_000
DETAILS = ("requests", "discards", "calls")
_USUAL_DETAIL = "discards"
_PAGE_BYTES = 4096
HOST_ONLY = {
    "detail": "a guest's requests are recorded with every page, and it discards nothing",
    "quota_records": "--ring bounds what a guest's recorder takes",
    "quota_bytes": "--ring bounds what a guest's recorder takes",
    "metrics_file": "metrics are of VMs, seen from their host",
    "metrics_listen": "metrics are of VMs, seen from their host",
}
"""Options that a guest's recorder has no use for, and why."""


def _group(*options: Callable[[Command], Command]) -> Callable[[Command], Command]:
    def add(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def _ring(text: str) -> int:
    """Click type of a ring's size; its name is the metavar users see."""
    found = size(text)
    if found < _PAGE_BYTES or found & (found - 1):
        raise click.BadParameter("a ring is a power of two of 4 KiB or more")
    return found


_ring.__name__ = "size"


def _listen(text: str) -> tuple[str, int]:
    """Click type of an address to listen on; its name is the metavar users see."""
    address, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise click.BadParameter("write it as 127.0.0.1:9105, or :9105 for this machine alone")
    return address.strip("[]") or "127.0.0.1", int(port)


_listen.__name__ = "address:port"

what_options = _group(
    click.option("--vm", "name", metavar="NAME", help="Record the VM of this name."),
    click.option("--uuid", help="Record the VM with this UUID."),
    click.option("--pid", type=click.IntRange(min=1), help="Record the VMM with this process id."),
    click.option("--all", "every", is_flag=True, help="Record every VM, also those yet to start."),
    click.option("--guest", is_flag=True, help="Record the driver of the guest this runs in."),
)
"""Which VM."""

detail_options = _group(
    click.option(
        "--detail",
        type=click.Choice(DETAILS),
        show_default=_USUAL_DETAIL,
        help="requests: every page; discards: and the discard calls, merged; calls: every call. "
        "Not with --guest.",
    ),
    click.option(
        "--probes",
        type=click.Choice(("fentry", "kprobe")),
        help="Insist on one kind of guest probe; fentry is tried first otherwise.",
    ),
    click.option(
        "--sample-every",
        type=duration,
        default="1s",
        show_default=True,
        help="Time between two samples of memory and pressure.",
    ),
    click.option(
        "--ring",
        type=_ring,
        help="Size of each of a VM's two rings, in a guest of each of three; chosen otherwise.",
    ),
    click.option(
        "--quota-records",
        type=click.IntRange(min=1),
        metavar="N",
        help="Records that one VM may cause in a second; more are counted as lost. "
        "Not with --guest.",
    ),
    click.option("--quota-bytes", type=size, help="The same in bytes of its rings, such as 64M."),
)
"""How much is recorded."""

storage_options = _group(
    click.option(
        "--compression",
        type=click.Choice(("lz4", "zstd")),
        default="lz4",
        show_default=True,
        help="zstd takes half the disk and more of the processor.",
    ),
    click.option(
        "--delta",
        is_flag=True,
        help="Store addresses and times as differences: a quarter of the disk where pages are "
        "scattered. aerostat restores them, other tools see differences.",
    ),
    click.option(
        "--segment-size", type=size, default="64M", show_default=True, help="Close a file there."
    ),
    click.option(
        "--segment-age", type=duration, default="60s", show_default=True, help="Or after so long."
    ),
    click.option("--budget", type=size, help="What each trace may take on the disk, 4M or more."),
    click.option(
        "--when-spent",
        type=click.Choice(("oldest", "stop")),
        default="oldest",
        show_default=True,
        help="At the budget's end delete the oldest files, or stop.",
    ),
)
"""How a trace lies on the disk."""

flight_options = _group(
    click.option(
        "--flight",
        type=duration,
        help="Hold so much time in memory, and write it only when something happens.",
    ),
    click.option(
        "--flight-memory",
        type=size,
        default="64M",
        show_default=True,
        help="Memory it may take for that.",
    ),
    click.option(
        "--stuck",
        type=duration,
        default="60s",
        show_default=True,
        help="With --flight: a target not reached, and not come nearer to, for so long.",
    ),
    click.option(
        "--stall",
        type=duration,
        default="1s",
        show_default=True,
        help="With --flight: one request that takes so long, whether it ends or not.",
    ),
)
"""The flight recorder."""

service_options = _group(
    click.option("--duration", type=duration, help="Stop by itself after this long, as 30s or 5m."),
    click.option("--ready-file", type=PATH, help="Make this file once every probe is attached."),
    click.option(
        "--metrics-file", type=PATH, help="Keep Prometheus metrics in this file, NAME.prom."
    ),
    click.option(
        "--metrics-listen", type=_listen, help="Answer Prometheus here, such as 127.0.0.1:9105."
    ),
)
"""How it runs and whom it tells."""

prove_options = _group(
    click.option(
        "--prove", is_flag=True, help="Kill recorders in mid-batch and count what they leave."
    ),
    json_option,
)
"""No recording, but a proof of what one leaves when it is killed."""


def capture_options(given: dict[str, Any]) -> dict[str, Any]:
    """Turn what was given into arguments of CaptureOptions.

    Raises:
        click.UsageError: Options that cannot go together.
    """
    from tracer.record.flight import FlightOptions
    from tracer.record.triggers import TriggerRules
    from tracer.trace.storage import LEAST_BUDGET_BYTES, Storage

    if given["budget"] is not None and given["budget"] < LEAST_BUDGET_BYTES:
        raise click.UsageError(f"--budget is at least {LEAST_BUDGET_BYTES >> 20}M")
    flight = None
    if given["flight"] is not None:
        flight = FlightOptions(
            span_ns=given["flight"],
            limit_bytes=given["flight_memory"],
            rules=TriggerRules(stuck_ns=given["stuck"], stall_ns=given["stall"]),
        )
    return {
        "output": Path(given["output"]),
        "force": given["force"],
        "duration_s": None if given["duration"] is None else given["duration"] / NS_PER_S,
        "sample_every_s": given["sample_every"] / NS_PER_S,
        "storage": Storage(
            rotate_bytes=given["segment_size"],
            rotate_ns=given["segment_age"],
            compression=given["compression"],
            delta=given["delta"],
            budget_bytes=given["budget"],
            budget_policy=given["when_spent"],
        ),
        "flight": flight,
    }


def host_options(given: dict[str, Any]) -> dict[str, Any]:
    """Turn what was given into the further arguments of HostOptions."""
    from tracer.engine.vm_probes import Quota

    usual = Quota()
    quota = Quota(
        given["quota_records"] or usual.records_per_s, given["quota_bytes"] or usual.bytes_per_s
    )
    detail = given["detail"] or _USUAL_DETAIL
    return {"detail": detail, "ring_bytes": given["ring"], "quota": quota}


def guest_options(given: dict[str, Any]) -> dict[str, Any]:
    """Turn what was given into the further arguments of GuestOptions."""
    fentry = None if given["probes"] is None else given["probes"] == "fentry"
    return {"fentry": fentry, "ring_bytes": given["ring"]}
