"""Calls that QEMU does not make: probed of all VMs where a VMM is whose handlers are not known."""

import contextlib
import signal

from tests.kernel.all_vms.recording_all import WAIT_S, attached, recording_all, trace_of, until
from tests.kernel.discarding import KINDS, discarded, inflate, machine
from tests.standins.build import configured, firecracker_like, qemu_like

OTHER_KINDS = [("over", backing) for backing in KINDS]
OTHER_KINDS += [("vector", "anon"), ("vector", "memfd")]


def test_the_calls_of_other_vmms_count_where_they_give_memory_back(tmp_path):
    directory = tmp_path / "traces.d"
    vms = {}
    with contextlib.ExitStack() as stack:
        micro = firecracker_like("--id", "micro", *configured(tmp_path, 64))
        stack.enter_context(micro)
        for kind, backing in OTHER_KINDS:
            home = tmp_path / f"{kind}-{backing}"
            home.mkdir()
            vm = qemu_like(*machine(backing, home), "-name", home.name)
            vms[kind, backing] = stack.enter_context(vm)
        recorder = stack.enter_context(recording_all(directory))
        names = ["micro", *(f"{kind}-{backing}" for kind, backing in OTHER_KINDS)]
        until(lambda: all(attached(directory, name) for name in names))
        given_back = {
            (kind, backing): inflate(vm, backing, kind) for (kind, backing), vm in vms.items()
        }
        recorder.send_signal(signal.SIGINT)
        recorder.wait(WAIT_S)
    assert {key for key, pages in given_back.items() if pages} == {
        *(("over", backing) for backing in ("anon", "file-private")),
        ("vector", "anon"),
    }
    for (kind, backing), pages in given_back.items():
        trace = trace_of(directory, f"{kind}-{backing}")
        assert discarded(trace) == (pages, bool(pages)), (kind, backing)
