"""What probes cost, as a capture measures it: on this kernel, with the real programs."""

import time
from pathlib import Path

import pytest

from tests.kernel.recording import recording
from tests.standins.build import qemu_like
from tracer.cost.call_cost import CallCost
from tracer.cost.costs import BodyTimes, CostMeter, ProbeCosts
from tracer.cost.trap_cost import INSTRUCTIONS, site_cost, trap_costs
from tracer.engine.host_engine import HostEngine
from tracer.engine.loader import EmptyPrograms
from tracer.engine.vm_probes import Quota, Target
from tracer.sites import host_probes
from tracer.sites.probes import HOST_CALL_POINTS, Kind, Way
from tracer.trace.reader import open_trace

CALLS = ("madvise", "fallocate", "process_madvise", "mmap")


@pytest.fixture
def engine():
    with HostEngine(calls=False) as made:
        yield made


def test_the_probes_of_a_call_cost_its_thread_more_than_others(engine):
    meter = CostMeter()
    attached = host_probes.attach_calls(engine.program, HOST_CALL_POINTS)
    costs = meter.costs(engine, attached)
    engine.program.detach()
    assert costs.call_probes == 4
    # Another recorder on this machine has already made others pay for classic tracepoints.
    assert costs.call_pair_ns is not None
    assert costs.bystander_ns is not None
    madvise = attached[0].way
    assert costs.hit_ns(madvise, None, None) == costs.call_pair_ns / 2
    assert costs.others_ns(madvise) == costs.bystander_ns / 4
    assert 0 < costs.uprobe_ns(emulated=True) < costs.uprobe_ns(emulated=False)


def test_without_system_call_probes_nobody_else_pays(engine):
    costs = CostMeter().costs(engine, [])
    assert costs.call_pair_ns is None
    assert costs.others_ns(Way(Kind.UPROBE, "0:pop", "on_pop_0")) == 0
    assert costs.uprobe_ns(emulated=True) > 0


def test_raw_tracepoints_are_seen_to_tax_every_system_call(engine):
    with CallCost() as cost:
        engine.program.attach_raw_tracepoint("on_raw_enter", "sys_enter")
        engine.program.attach_raw_tracepoint("on_raw_exit", "sys_exit")
        taxed_ns = cost.bystander_ns()
        engine.program.detach()
        assert taxed_ns > 3
        assert cost.bystander_ns() < taxed_ns


@pytest.mark.parametrize("name", CALLS)
def test_every_system_call_that_is_timed_succeeds_and_is_seen(name, engine):
    with CallCost(name) as cost:
        engine.program.attach_tracepoint(f"on_{name}_enter", "syscalls", f"sys_enter_{name}")
        engine.program.attach_tracepoint("on_call_exit", "syscalls", f"sys_exit_{name}")
        # On a busy machine the difference may drown: what is proven is that the calls were seen.
        assert cost.traced_ns(engine) is not None
        assert cost.call() >= 0


def stats_kept() -> int:
    """How many descriptors of this process have the kernel time BPF programs."""
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return sum("bpf-stats" in str(link) for link in links)


def test_our_own_programs_are_timed_over_their_first_requests(engine):
    with qemu_like("-m", "64M", "-device", "virtio-balloon-pci") as vm:
        sites = host_probes.find_sites(vm.pid)
        target = Target(vm.pid, sites, (), (), True, 1 << 20, 1 << 20, Quota())
        probes = engine.add(target)
        times = BodyTimes(engine.program, ("on_pop_0", "on_push"), runs=8)
        assert times.mean_ns("on_push") is None
        assert stats_kept() == 1
        host_probes.attach_requests(engine.program, sites, vm.pid)
        vm.send("inflate", 4000, 2048, -1)
        times.poll()
        timed = engine.program.runs("on_push").count
        assert timed == 8
        assert stats_kept() == 0  # That was enough.
        pop_ns, push_ns = times.mean_ns("on_pop_0"), times.mean_ns("on_push")
        assert 0 < pop_ns < push_ns  # A push copies up to 256 PFNs.
        costs = ProbeCosts(traps_ns={"jump": 300.0, "other": 3000.0})
        pop = Way(Kind.UPROBE, "0:pop", "on_pop_0")
        assert costs.hit_ns(pop, sites, pop_ns) == 300.0 + pop_ns
        engine.program.detach()
        probes.close()


def test_a_hit_has_a_cost_once_its_program_was_timed(engine):
    device = "virtio-balloon-pci,free-page-reporting=on,free-page-hint=on"
    with qemu_like("-m", "256M", "-device", device) as vm:
        sites = host_probes.find_sites(vm.pid)
        probes = engine.add(Target(vm.pid, sites, (), (), True, 1 << 20, 1 << 20, Quota()))
        attached = {attachment.point.name: attachment for attachment in probes.attach()}
        assert {engine.hit_ns(attachment, sites) for attachment in attached.values()} == {None}
        vm.send("inflate", 4000, 512, -1)
        vm.send("report", "64m", "2m")
        vm.send("actual", 1 << 20)
        costs = {name: engine.hit_ns(attached[name], sites) for name in attached}
        for name in ("queues-pop", "queues-push", "reporting-pop", "reporting-push", "actual"):
            way = attached[name].way
            body_ns = engine.program.runs(way.program).mean_ns
            trap_ns = site_cost(sites.exe, sites.file_offsets[way.target], engine.costs.traps_ns)
            assert costs[name] == trap_ns + body_ns
        assert costs["hint-pop"] > 0  # It did not run, but is the same program as those that did.
        assert {costs[name] for name in ("stats-pop", "target", "run-state")} == {None}
        probes.close()


def test_a_trace_holds_what_each_probe_costs_also_when_the_vm_has_ended(tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like("-m", "64M", "-device", "virtio-balloon-pci") as vm, recording(vm, output):
        vm.send("inflate", 10_000, 512, -1)
        vm.end()
        deadline_s = time.monotonic() + 30
        while not open_trace(output).is_complete and time.monotonic() < deadline_s:
            time.sleep(0.1)
    trace = open_trace(output)
    assert trace.manifest.end_reason == "vm-exited"
    probes = {p.point: p for p in trace.manifest.sides["host"].probes}
    for name in ("queues-pop", "queues-push"):
        assert probes[name].cost_ns > 0
        assert probes[name].bystander_ns == 0
    assert probes["madvise-enter"].cost_ns is not None
    assert probes["madvise-enter"].bystander_ns >= 0


def test_an_instruction_is_always_probed_at_its_own_place(monkeypatch):
    """A uprobe that a killed process left behind may come back for a later file."""
    places: dict[str, int] = {}

    def noting(programs, function, path, offset, pid):
        code = path.read_bytes()
        name = next(name for name, body in INSTRUCTIONS.items() if code[offset:].startswith(body))
        assert places.setdefault(name, offset) == offset
        attach(programs, function, path, offset, pid)

    attach = EmptyPrograms.attach_uprobe
    monkeypatch.setattr(EmptyPrograms, "attach_uprobe", noting)
    trap_costs(["other", "nop"])
    trap_costs(["call", "nop", "jump"])
    trap_costs(["other", "jump"])
    assert len(places) == 4
