"""Draws what the balloon did: head, stages, ledger, discards, runs and residency."""

from collections.abc import Sequence
from datetime import UTC, datetime

from aerostat import render
from aerostat.discards import Discards
from aerostat.scope import scopes
from aerostat.shape import Residency, RunLengths
from tracer.account.ledger import Ledger
from tracer.account.stages import SEED_PERCENT, SEED_TOTAL_NS, Direction, Stage, StageTable
from tracer.trace.manifest import Manifest, SideInfo
from tracer.trace.missing import unseen_requests
from tracer.trace.reader import Trace
from tracer.trace.schema import PAGE_BYTES, Queue

NS_PER_S = 1_000_000_000

SEED_RANGES_NS = 590_000_000
"""The seed's own inflate with {pfn|length} ranges and bulk advice, 7 of 8 GiB."""


def draw_stages(table: StageTable, manifest: Manifest) -> None:
    """Draw the stage table of every direction, the seed's beside the inflate."""
    if not table.directions:
        unseen = unseen_requests(manifest) is not None and "guest" not in manifest.sides
        why = "none could be seen, see above" if unseen else "the balloon did not move"
        render.say(f"No requests: {why}.")
        render.say()
    for direction in table.directions:
        _draw_direction(direction)
    if table.clock is not None:
        bound = render.ns(table.clock.bound_ns)
        doubt = "" if table.clock.consistent else ", but not every pair fits one line"
        render.say(f"Clocks: the guest's fits the host's to within {bound}{doubt}.")
        render.say()


def _draw_direction(direction: Direction) -> None:
    seeded = any(stage.seed_ns is not None for stage in direction.stages)
    columns = ["<stage", "requests", "total", "per page", "share", "without probes", "p99"]
    if seeded:
        columns += ["seed's share", "seed's time"]
    rows = []
    for stage in direction.stages:
        if stage.total_ns is None and not _belongs(direction, stage):
            continue
        name = f"{stage.letter}  {stage.name}" if stage.letter else f"   {stage.name}"
        cells = [
            name,
            render.count(stage.requests if stage.total_ns is not None else None),
            render.ns(stage.total_ns),
            render.ns(stage.ns_per_page),
            render.percent(stage.percent),
            render.ns(stage.corrected_ns),
            render.ns(stage.p99_ns),
        ]
        if seeded:
            cells += [render.percent(stage.seed_percent), render.ns(stage.seed_ns)]
        rows.append(cells)
    other = ["   other: outside requests", "", render.ns(direction.other_ns)]
    rows.append(other + [""] * (len(columns) - len(other)))
    spare = ("per page", "p99", "seed's time")
    render.draw(_title(direction), columns, rows, spare=spare)
    if seeded:
        _say_seed(direction)


def _belongs(direction: Direction, stage: Stage) -> bool:
    """Whether a stage that was not observed is still a row: the seed's stages are, always.

    A report has no stage a: its pages are free before.
    """
    return bool(stage.letter) and (direction.queue, stage.letter) != (Queue.REPORTING, "a")


def _title(direction: Direction) -> str:
    pages = f"{direction.pages:,} pages in {direction.requests:,} requests"
    wall = f", {render.ns(direction.wall_ns)} from first to last" if direction.wall_ns else ""
    return f"{direction.queue.name.lower()}: {pages}{wall}"


def _say_seed(direction: Direction) -> None:
    shares = " ".join(f"{letter} {share:g} %" for letter, share in SEED_PERCENT.items())
    here = render.ns(direction.seven_gib_ns)
    bare = direction.corrected_seven_gib_ns
    without = "" if bare is None else f"; without what the probes cost: {render.ns(bare)}"
    render.say(f"a+b+c+d of 7 GiB at this rate: {here}{without}.")
    render.say(
        f"The seed (2016): {SEED_TOTAL_NS // 10**6} ms: {shares};"
        f" with ranges and bulk advice {SEED_RANGES_NS // 10**6} ms."
    )
    render.say()


def draw_ledger(ledger: Ledger) -> None:
    """Draw every count of the same pages, and whether they agree."""
    verdict = {
        True: "balanced",
        False: "NOT BALANCED",
        None: f"nothing could be compared: {ledger.why_open}",
    }
    rows = [
        (line.name, render.count(line.pages), line.status, line.source) for line in ledger.lines
    ]
    render.draw(
        f"ledger: {verdict[ledger.balanced]}",
        ("<count of", "pages", "<status", "<source"),
        rows,
    )


def draw_head(path: str, trace: Trace) -> None:
    """Say what was recorded, where, in what detail, and whether the recording is whole."""
    manifest = trace.manifest
    state = "complete" if trace.is_complete else "NOT COMPLETE"
    reason = f" ({manifest.end_reason})" if manifest.end_reason else ""
    render.say(f"{path}: {state}{reason}, format {manifest.format_version}")
    if manifest.is_cut_short:
        render.say("The disk was full then: what came after is not in it.")
    vm = manifest.vm
    if vm is not None:
        version = " ".join(part for part in (vm.vmm, vm.vmm_version) if part)
        words = [vm.name, version or None, vm.accel, render.size(vm.memory_bytes) + " memory"]
        words.append(f"{render.count(vm.vcpus)} vCPUs")
        render.say("VM: " + ", ".join(word for word in words if word))
        features = render.cell(vm.features, lambda names: ", ".join(names) or "none")
        render.say(f"Balloon features: {features}")
    for name, side in manifest.sides.items():
        length = None if side.end_ns is None else side.end_ns - side.begin_ns
        render.say(
            f"{name.capitalize()}: kernel {side.kernel_release or '-'},"
            f" {render.count(side.cpus)} CPUs, THP {side.thp or '-'},"
            f" recorded for {render.ns(length)}{_from(side)}"
        )
    if manifest.vm is not None and manifest.vm.accel == "tcg":
        render.say("The guest was emulated: its own times are far longer than with KVM.")
    for scope in scopes(manifest):
        for sentence in scope.sentences():
            render.say(sentence)
    if deltas := len(trace.segments_of_form(delta=True)):
        render.say(
            f"Segments of differences, which aerostat alone restores: {deltas}. For other tools:"
            f" aerostat import --absolute {path} -o COPY"
        )
    render.say()


def _from(side: SideInfo) -> str:
    """When recording began by the wall clock, if that is known and a date."""
    if not side.realtime_anchors:
        return ""
    clock_ns, realtime_ns = side.realtime_anchors[0]
    began_s = (realtime_ns + side.begin_ns - clock_ns) // NS_PER_S
    try:
        began = datetime.fromtimestamp(began_s, UTC)
    except (OverflowError, ValueError, OSError):
        return ""
    return f", from {began:%Y-%m-%d %H:%M:%S} UTC"


def draw_discards(found: Sequence[Discards], manifest: Manifest) -> None:
    """Draw the VMM's system calls by what they asked for; nothing where none was recorded."""
    rows = [
        (
            item.call,
            item.advice,
            render.cell(item.on_guest_memory, lambda on: "guest" if on else "other"),
            render.count(item.calls),
            render.count(item.pages),
            render.ns(item.total_ns),
            render.ns(item.ns_per_page),
            render.ns(item.worst_ns),
            _failed(item),
            render.cell(item.mean_run_pages, _mean),
        )
        for item in found
    ]
    if rows:
        columns = ["<call", "<advice", "<memory", "calls", "pages", "total", "per page", "worst"]
        columns += ["failed", "pages a run"]
        render.draw("discards: the VMM's system calls", columns, rows, spare=("worst",))
    host = manifest.sides.get("host")
    outside = host.counters.get("outside_calls", 0) if host is not None else 0
    if outside:
        render.say(f"{outside:,} further calls were not on guest memory and are not recorded.")
        render.say()


def _failed(item: Discards) -> str:
    """How many calls failed, and with what."""
    if not item.failed:
        return "0"
    first, *others = item.errnos
    return f"{item.failed:,} {first}{' and other' if others else ''}"


def _mean(pages: float) -> str:
    return f"{pages:,.0f}" if pages >= 100 else f"{pages:.1f}"


def draw_runs(lengths: Sequence[RunLengths]) -> None:
    """Draw how the requests name their pages."""
    rows = [
        (
            item.queue.name.lower(),
            item.side.name.lower(),
            render.count(item.requests),
            render.count(item.runs),
            render.count(item.pages),
            render.count(item.median_pages),
            render.count(item.longest_pages),
            render.percent(item.falling_percent),
            render.percent(item.huge_percent),
        )
        for item in lengths
    ]
    if rows:
        columns = ["<queue", "<seen by", "requests", "runs", "pages", "half in runs of"]
        columns += ["longest", "falling", "in runs >= 2 MiB"]
        render.draw("runs of neighbouring pages", columns, rows)


def say_residency(found: Residency | None) -> None:
    """Say how much of guest memory was resident when the balloon began to move."""
    if found is None:
        render.say("Resident guest memory: -")
        render.say()
        return
    huge = render.cell(found.huge_pages, lambda pages: render.size(pages * PAGE_BYTES))
    render.say(
        f"Resident guest memory when the balloon began to move:"
        f" {render.size(found.resident_pages * PAGE_BYTES)}"
        f" of {render.size(found.pages * PAGE_BYTES)}, in huge pages: {huge}"
    )
    render.say()
