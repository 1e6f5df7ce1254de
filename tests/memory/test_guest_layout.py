"""Where guest memory lies, found from outside in processes that map it as VMMs do."""

import numpy as np
import pytest

from tests.standins.build import StandIn, firecracker_like, qemu_like
from tracer.vms.guest_files import files_of_regions, gpa_of_offsets
from tracer.vms.learned_map import LearnedMap
from tracer.vms.memory_map import GuestMemory, MemoryMap, find_memory
from tracer.vms.vmm import inspect

GIB = 1 << 30


def truth(vm: StandIn) -> list[tuple]:
    parts = sorted(vm.parts, key=lambda part: part["gpa"])
    keys = ("gpa", "hva", "length_bytes", "backing", "page_size_bytes", "file_offset_bytes")
    return [tuple(part[key] for key in keys) for part in parts]


def found(regions) -> list[tuple]:
    return [
        (r.gpa, r.hva, r.length_bytes, r.backing, r.page_size_bytes, r.file_offset_bytes)
        for r in regions
    ]


def memory_of(vm: StandIn) -> GuestMemory:
    return find_memory(inspect(vm.pid))


def node(number: int, kind: str, size: str, more: str = "") -> list[str]:
    name = f"ram-node{number}"
    return [
        *("-object", f"memory-backend-{kind},id={name},size={size}{more}"),
        *("-numa", f"node,nodeid={number},memdev={name}"),
    ]


def backend(kind: str, size: str, more: str = "", machine: str = "pc") -> list[str]:
    return [
        *("-m", size, "-machine", f"{machine},memory-backend=pc.ram"),
        *("-object", f"memory-backend-{kind},id=pc.ram,size={size}{more}"),
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "512M"],
        ["-m", "6G"],
        ["-m", "6G", "-machine", "q35"],
        ["-m", "2816M", "-machine", "q35"],
        ["-m", "3G"],
        backend("memfd", "6G"),
        backend("memfd", "1G", ",share=off"),
        backend("ram", "6G", ",share=on", machine="q35"),
        ["-m", "4G", *node(0, "ram", "1G"), *node(1, "ram", "3G")],
        ["-m", "6G", *node(0, "memfd", "2G"), *node(1, "ram", "4G")],
        ["-m", "4G", *node(1, "memfd", "3G"), *node(0, "memfd", "1G")],
    ],
    ids=" ".join,
)
def test_a_qemu_whose_options_settle_it(arguments):
    with qemu_like(*arguments) as vm:
        memory = memory_of(vm)
        assert found(memory.regions) == truth(vm)
        assert memory.reason == ""


@pytest.mark.parametrize("share", ["on", "off"])
def test_a_qemu_on_a_file(tmp_path, share):
    more = f",mem-path={tmp_path / 'ram'},share={share}"
    with qemu_like(*backend("file", "5G", more)) as vm:
        assert found(memory_of(vm).regions) == truth(vm)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mem-size-mib", "512"],
        ["--mem-size-mib", "6144"],
        ["--mem-size-mib", "5000", "--hole-mib", "768"],
        ["--mem-size-mib", "5000", "--backing", "memfd"],
        ["--mem-size-mib", "5000", "--backing", "memfd", "--hole-mib", "768"],
    ],
    ids=" ".join,
)
def test_a_firecracker_by_its_mappings_and_boot_record(arguments):
    with firecracker_like(*arguments) as vm:
        assert found(memory_of(vm).regions) == truth(vm)


def test_a_firecracker_that_has_mapped_over_its_memory():
    """What is left of the mappings is in shreds; both ends of memory are holes."""
    with firecracker_like(
        "--mem-size-mib", "5000", "--backing", "memfd", "--discard", "remap"
    ) as vm:
        last = vm.parts[0]["length_bytes"] // 4096
        for first, count in ((0, 1), (100, 50), (last - 3, 3), (1 << 20, 7)):
            vm.send("inflate", first, count)
        vm.send("inflate", (4 * GIB + vm.parts[1]["length_bytes"]) // 4096 - 2, 2)
        assert found(memory_of(vm).regions) == truth(vm)


def test_memory_that_is_mapped_from_a_config_file(tmp_path):
    config = tmp_path / "vm.json"
    config.write_text('{"machine-config": {"vcpu_count": 1, "mem_size_mib": 3584}}')
    with firecracker_like("--id", "a", "--config-file", str(config)) as vm:
        assert inspect(vm.pid).memory_bytes == 3584 << 20
        assert found(memory_of(vm).regions) == truth(vm)


def test_equal_backends_stay_unknown_until_a_request_tells_them_apart():
    arguments = ["-m", "4G", *node(0, "memfd", "2G"), *node(1, "memfd", "2G")]
    with qemu_like(*arguments) as vm:
        memory = memory_of(vm)
        assert memory.regions == ()
        assert "2 maps fit" in memory.reason
        assert len(memory.likely) == 2
        learned = LearnedMap(memory)
        part = vm.parts[0]
        assert learned.add(np.array([part["gpa"] + 4096]), np.array([part["hva"] + 4096]))
        assert learned.is_certain
        assert found(learned.regions) == truth(vm)


def test_memory_plugged_later_is_learned():
    """A DIMM is in no option that the VM was started with."""
    with qemu_like("-m", "512M") as vm:
        learned = LearnedMap(memory_of(vm))
        plugged = memory_of(vm).extents[0]
    with qemu_like("-m", "512M", *node(0, "ram", "512M"), *node(1, "ram", "256M")) as vm:
        # As if node 1 had been plugged at 8 GiB: the options know of 512 MiB alone.
        whole = find_memory(inspect(vm.pid))
        known = next(e for e in whole.extents if e.length_bytes == 512 << 20)
        dimm = next(e for e in whole.extents if e.length_bytes == 256 << 20)
        region = known.region("below-4g", 0, known.start, known.length_bytes)
        memory = GuestMemory(((region,),), whole.extents, (known,), "")
    learned = LearnedMap(memory)
    assert plugged not in whole.extents
    learned.add(np.array([8 * GIB + 4096]), np.array([dimm.start + 4096]))
    gpas = MemoryMap(learned.regions).gpa_of_hva(
        np.array([known.start + 8192, dimm.start, dimm.end - 4096, dimm.end], np.uint64)
    )
    assert gpas.tolist() == [8192, 8 * GIB, 8 * GIB + (256 << 20) - 4096, -1]


def test_offsets_into_two_files_are_told_apart_by_their_descriptors():
    arguments = ["-m", "4G", *node(0, "memfd", "1G"), *node(1, "memfd", "3G")]
    with qemu_like(*arguments) as vm:
        files = files_of_regions(vm.pid, memory_of(vm).regions)
    by_regions = {len(regions): fd for fd, regions in files.items()}
    offsets = np.array([4096, 4096, 5 << 29, 5 << 29], np.uint64)
    fds = np.array([by_regions[1], by_regions[2], by_regions[2], by_regions[1]], np.uint32)
    gpas = gpa_of_offsets(files, fds, offsets)
    assert gpas.tolist() == [4096, GIB + 4096, 9 * GIB // 2, -1]
