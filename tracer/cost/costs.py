"""What each probe of a capture costs: the VM that is traced, and every other process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from tracer.cost.call_cost import CallCost, Requesting
from tracer.cost.trap_cost import EMULATED, SINGLE_STEPPED, site_cost, try_trap_costs
from tracer.engine.attach import Attachment
from tracer.engine.attachments import Attachments
from tracer.engine.bpf_programs import RunStats
from tracer.errors import ProbeError
from tracer.sites.host_probes import QemuSites
from tracer.sites.probes import Kind, Way


@dataclass(frozen=True, slots=True)
class ProbeCosts:
    """Costs of one recorder's probes on this machine, measured when they were attached.

    Attributes:
        traps_ns: What a uprobe's trap adds to a hit, by instruction (tracer/cost/trap_cost.py).
        call_pair_ns: What the probes of one system call add to a traced call, entry and exit
            together, our programs included.
        bystander_ns: What all system-call probes together add to every system call of every
            process.
        call_probes: How many probes that is.
    """

    traps_ns: Mapping[str, float] = field(default_factory=dict)
    call_pair_ns: float | None = None
    bystander_ns: float | None = None
    call_probes: int = 0

    def uprobe_ns(self, emulated: bool) -> float | None:
        """What a uprobe's trap costs, by whether the kernel emulates the instruction."""
        return self.traps_ns.get(EMULATED if emulated else SINGLE_STEPPED)

    def hit_ns(self, way: Way, sites: QemuSites | None, body_ns: float | None) -> float | None:
        """Say what one hit of an attached probe costs the traced VM.

        Args:
            way: How it is attached.
            sites: Where the uprobes of this VM are.
            body_ns: One run of our own program (BodyTimes), None where it was not timed; of a
                system-call probe it is measured already.

        Returns:
            Nanoseconds. None where a part of it was not measured: the trap alone is not the cost.
        """
        if way.kind is not Kind.UPROBE:
            return None if self.call_pair_ns is None else self.call_pair_ns / 2
        offset = None if sites is None else sites.file_offsets.get(way.target)
        if sites is None or offset is None:
            return None
        trap_ns = site_cost(sites.exe, offset, self.traps_ns)
        return None if trap_ns is None or body_ns is None else trap_ns + body_ns

    def others_ns(self, way: Way) -> float | None:
        """Say what one attached probe adds to every system call of every other process."""
        if way.kind is Kind.UPROBE:
            return 0.0
        if self.bystander_ns is None or not self.call_probes:
            return None
        return self.bystander_ns / self.call_probes


class CostMeter:
    """Times what probes add: make one before system-call probes attach, ask it after."""

    def __init__(self) -> None:
        self._traps_ns = try_trap_costs()
        try:
            self._calls: CallCost | None = CallCost()
        except ProbeError:
            self._calls = None

    def costs(self, engine: Requesting, attached: Iterable[Attachment]) -> ProbeCosts:
        """Measure and close.

        Args:
            engine: The programs, their system-call probes attached.
            attached: What became of those probes.
        """
        if self._calls is None:
            return ProbeCosts(self._traps_ns)
        ways = {attachment.way for attachment in attached if attachment.way is not None}
        with self._calls as calls:
            if not ways:
                return ProbeCosts(self._traps_ns)
            return ProbeCosts(
                self._traps_ns, calls.traced_ns(engine), calls.bystander_ns(), len(ways)
            )


class BodyTimes:
    """Has the kernel time our own programs over their first runs in a capture, then stops.

    Timing adds two clock reads to a run of any BPF program on this machine, so it is not left on.

    Args:
        program: The attached programs.
        functions: Those to time.
        runs: How many runs of each are enough.
    """

    def __init__(self, program: Attachments, functions: Iterable[str], runs: int = 256) -> None:
        self._program = program
        self._functions = tuple(functions)
        self._runs = runs
        try:
            self._stats: RunStats | None = RunStats()
        except ProbeError:
            self._stats = None

    def poll(self) -> None:
        """Stop if every program has run often enough; costs little, call it now and then."""
        counts = [self._program.runs(function).count for function in self._functions]
        if self._stats is not None and min(counts, default=0) >= self._runs:
            self.close()

    def mean_ns(self, function: str) -> float | None:
        """Nanoseconds of one run, without what leads to it; None where none was timed."""
        return self._program.runs(function).mean_ns

    def close(self) -> None:
        """Stop timing."""
        if self._stats is not None:
            self._stats.close()
            self._stats = None
