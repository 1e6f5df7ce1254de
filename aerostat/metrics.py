"""Prometheus metrics of the VMs that are recorded now: a text file, an endpoint, or both.

Counts are counters in base units. What was not observed has no sample, which is not the same as
zero, and a VM that has ended has none at all.
"""

import os
import stat
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry, start_http_server, write_to_textfile
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from aerostat import __version__
from aerostat.output import printable
from tracer.record.live import VmStats
from tracer.trace.errors import AerostatError
from tracer.trace.schema import PAGE_BYTES

_NS_PER_S = 1e9
_MOST_TEXT = 128
"""Longest label value: names come from command lines that others wrote."""


@dataclass(frozen=True)
class _Series:
    """One metric: its name, and how its samples are read off a VM.

    Attributes:
        name: With unit; a counter's also ends in `_total`.
        text: Its help.
        read: Gives the value, or None where it was not observed; of a metric with a further label,
            the value of each of that label's values.
        label: That further label.
    """

    name: str
    text: str
    read: Callable[[VmStats], float | Mapping[Any, float] | None]
    label: str | None = None


_GAUGES = (
    _Series("vm_memory_bytes", "Memory of the guest.", lambda vm: vm.memory_bytes),
    _Series(
        "vm_actual_bytes",
        "Memory that the device says the guest has left: its memory less the balloon.",
        lambda vm: vm.actual_bytes,
    ),
    _Series(
        "vm_target_bytes", "Memory that the guest is asked to keep.", lambda vm: vm.target_bytes
    ),
    _Series(
        "vm_longest_request_seconds",
        "Longest time between taking a request and returning it, since recording began.",
        lambda vm: vm.longest_ns / _NS_PER_S,
    ),
    _Series(
        "vm_last_sample_timestamp_seconds",
        "When the figures of this VM were taken.",
        lambda vm: time.time() - (time.monotonic_ns() - vm.ts_ns) / _NS_PER_S,
    ),
)
_COUNTERS = (
    _Series(
        "moved_bytes_total",
        "Guest memory named in balloon requests.",
        lambda vm: {queue.name.lower(): pages * PAGE_BYTES for queue, pages in vm.pages.items()},
        "queue",
    ),
    _Series(
        "requests_total",
        "Balloon requests: virtqueue buffers that the device took.",
        lambda vm: {queue.name.lower(): count for queue, count in vm.requests.items()},
        "queue",
    ),
    _Series("runs_total", "Runs of neighbouring pages in requests.", lambda vm: vm.runs),
    _Series(
        "request_seconds_total",
        "Time between taking a request and returning it.",
        lambda vm: vm.busy_ns / _NS_PER_S,
    ),
    _Series(
        "discard_calls_total",
        "System calls that gave guest memory back to the host.",
        lambda vm: vm.discard_calls,
    ),
    _Series(
        "discard_seconds_total",
        "Time in these system calls.",
        lambda vm: None if vm.discard_ns is None else vm.discard_ns / _NS_PER_S,
    ),
    _Series(
        "discarded_bytes_total",
        "Guest memory that these system calls covered.",
        lambda vm: vm.discard_bytes,
    ),
    _Series("lost_events_total", "Events that the trace lacks.", lambda vm: vm.lost, "cause"),
    _Series("written_bytes_total", "Bytes written to the trace.", lambda vm: vm.written_bytes),
    _Series(
        "probe_seconds_total",
        "Time that the probes added to the VM, estimated from their measured cost.",
        lambda vm: None if vm.probe_ns is None else vm.probe_ns / _NS_PER_S,
    ),
)


class VmCollector(Collector):
    """Gives the figures of the last `update` to whoever scrapes; safe across threads."""

    def __init__(self) -> None:
        self._vms: Sequence[VmStats] = ()

    def update(self, vms: Iterable[VmStats]) -> None:
        """Replace all figures: a VM that is not among them is gone."""
        self._vms = tuple(vms)

    def collect(self) -> Iterator[Metric]:
        """Give every metric that has a sample, and the version."""
        named = _labelled(self._vms)
        for series in _GAUGES:
            yield from _family(GaugeMetricFamily, series, named)
        for series in _COUNTERS:
            yield from _family(CounterMetricFamily, series, named)
        build = GaugeMetricFamily("aerostat_build_info", "This aerostat.", labels=["version"])
        build.add_metric([__version__], 1)
        yield build


def _labelled(vms: Sequence[VmStats]) -> list[tuple[list[str], VmStats]]:
    """Give each VM its `vm` and `uuid`; those that would share both get their pid into `vm`."""
    labels = [(_text(vm.name), _text(vm.uuid or "")) for vm in vms]
    twice = {pair for pair, count in Counter(labels).items() if count > 1}
    return [
        ([f"{name}@{vm.pid}" if (name, uuid) in twice else name, uuid], vm)
        for (name, uuid), vm in zip(labels, vms, strict=True)
    ]


def _text(value: str) -> str:
    return printable(value.encode(errors="backslashreplace").decode())[:_MOST_TEXT]


def _family(
    kind: type[GaugeMetricFamily] | type[CounterMetricFamily],
    series: _Series,
    vms: list[tuple[list[str], VmStats]],
) -> Iterator[Metric]:
    names = ["vm", "uuid", *([series.label] if series.label else [])]
    family = kind(f"aerostat_{series.name}", series.text, labels=names)
    for labels, vm in vms:
        value = series.read(vm)
        if isinstance(value, Mapping):
            for key, part in sorted(value.items()):
                family.add_metric([*labels, str(key)], part)
        elif value is not None:
            family.add_metric(labels, value)
    if family.samples:
        yield family


class MetricsExport:
    """Serves and writes the metrics until it is left.

    Args:
        file: A text file for node_exporter's collector, NAME.prom; replaced whole at each update,
            removed at the end.
        listen: Address and port to answer HTTP on; port 0 takes a free one.

    Raises:
        AerostatError: The file cannot be written, or the address is not to be had.
    """

    def __init__(self, *, file: Path | None = None, listen: tuple[str, int] | None = None) -> None:
        self._collector = VmCollector()
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self._collector)
        self._file = file
        self._server: Any = None
        self.port: int | None = None
        if file is not None:
            self._begin_file(file)
        if listen is not None:
            self._begin_server(*listen)

    def update(self, vms: Iterable[VmStats]) -> str | None:
        """Show these VMs from now on, and no others.

        Returns:
            Why the text file could not be replaced; it never ends a recording.
        """
        self._collector.update(vms)
        if self._file is not None:
            try:
                write_to_textfile(str(self._file), self._registry)
            except OSError as problem:
                return f"cannot write {self._file}: {problem.strerror or problem}"
        return None

    def close(self) -> None:
        """Stop answering, and remove the text file: nobody is recorded any more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        if self._file is not None:
            self._file.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        problem: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _begin_file(self, file: Path) -> None:
        if file.suffix != ".prom":
            raise AerostatError(
                f"metrics are not written to {file}",
                reason="node_exporter reads only files whose name ends in .prom",
                remedy="give a name that ends in .prom",
            )
        # It is replaced by a rename, whatever it is.
        if os.path.lexists(file) and not stat.S_ISREG(file.lstat().st_mode):
            raise AerostatError(
                f"metrics are not written to {file}",
                reason="it exists and is no regular file",
                remedy="give another name",
            )
        if problem := self.update(()):
            raise AerostatError(
                problem, remedy="give a file in a directory that exists and can be written"
            )

    def _begin_server(self, address: str, port: int) -> None:
        try:
            self._server, _ = start_http_server(port, address, self._registry)
        except OSError as problem:
            self.close()
            raise AerostatError(
                f"cannot listen on {address} port {port} for metrics",
                reason=problem.strerror or str(problem),
                remedy="give an address of this machine and a port that is free",
            ) from problem
        self.port = self._server.server_port
