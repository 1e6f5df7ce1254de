"""What the ledger takes for a discard, by every call on every kind of memory; the kernel knows."""

import pytest

from tests.kernel.discarding import KINDS, discarded, inflate, machine
from tests.kernel.recording import recording
from tests.standins.build import qemu_like
from tracer.trace.reader import open_trace


@pytest.mark.parametrize(("backing", "kind"), [(b, k) for b, kinds in KINDS.items() for k in kinds])
def test_a_call_counts_as_a_discard_where_it_gives_memory_back(backing, kind, tmp_path):
    output = tmp_path / "host.balloon"
    with qemu_like(*machine(backing, tmp_path)) as vm, recording(vm, output):
        given_back = inflate(vm, backing, kind)
    trace = open_trace(output)
    assert {region.backing for region in trace.manifest.regions} == {backing}
    assert discarded(trace) == (given_back, bool(given_back))
