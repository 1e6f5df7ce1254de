"""How memory is laid out around the PCI hole, from sizes and mappings alone."""

import time
from itertools import pairwise

import numpy as np
import pytest

from tracer.trace.manifest import Region
from tracer.vms.extents import Extent, find_extents, joined
from tracer.vms.layouts import (
    FOUR_GIB,
    GIB,
    HOLE_STARTS,
    below_4g_bytes,
    qemu_layouts,
    two_part_layouts,
)
from tracer.vms.mappings import Mapping
from tracer.vms.qemu_options import Backend, ram_backends
from tracer.vms.translation import MemoryMap, agreed

MIB = 1 << 20
BASE = 0x7F0000000000


def mapped(start: int, length: int, path: str = "", inode: int = 0, offset: int = 0) -> Mapping:
    permissions = "rw-s" if inode else "rw-p"
    return Mapping(start, start + length, permissions, offset, inode, path, "00:01")


def extents(*mappings: Mapping, file_bytes=None) -> list[Extent]:
    return find_extents(mappings, lambda mapping: file_bytes, lambda mapping: 4096)


def placed(layout) -> list[tuple[int, int, int]]:
    return [(part.gpa, part.start, part.length_bytes) for part in layout]


@pytest.mark.parametrize(
    ("machine", "memory", "low"),
    [
        ("pc", 2 * GIB, 2 * GIB),
        ("pc", 8 * GIB, 3 * GIB),
        ("pc-i440fx-8.1+pve0", 0xE0000000, 3 * GIB),
        ("pc", 0xE0000000 - MIB, 0xE0000000 - MIB),
        ("q35", 2 * GIB, 2 * GIB),
        ("pc-q35-7.2", 8 * GIB, 2 * GIB),
        ("q35", 0xB0000000, 2 * GIB),
        ("q35", 0xB0000000 - MIB, 0xB0000000 - MIB),
        ("microvm", 8 * GIB, 3 * GIB),
    ],
)
def test_split_at_the_pci_hole(machine, memory, low):
    assert below_4g_bytes(machine, memory) == low


def test_the_machine_may_put_less_below_the_hole():
    assert below_4g_bytes("q35", 8 * GIB, GIB) == GIB
    assert below_4g_bytes("pc", GIB // 2, GIB) == GIB // 2


def test_backends_come_in_the_order_of_their_nodes():
    found = ram_backends(
        (
            "qemu",
            *("-object", '{"qom-type":"memory-backend-memfd","id":"b","size":1073741824}'),
            *("-object", "memory-backend-file,id=a,size=2G,mem-path=/dev/hugepages,share=on"),
            *("-object", "memory-backend-ram,id=dimm,size=1G"),
            *("-numa", "node,nodeid=1,cpus=2-3,memdev=b"),
            *("-numa", "node,nodeid=0,cpus=0-1,memdev=a"),
            *("-numa", "dist,src=0,dst=1,val=20"),
        )
    )
    assert found == [
        Backend("file", "a", 2 * GIB, "/dev/hugepages"),
        Backend("memfd", "b", GIB, None),
    ]


def test_a_huge_qemu_may_go_on_at_one_tebibyte():
    memory = 1024 * GIB
    (whole,) = extents(mapped(BASE, memory))
    layouts = qemu_layouts([whole], [(Backend("ram", "pc.ram", memory), memory)], 2 * GIB)
    assert [layout[1].gpa for layout in layouts] == [FOUR_GIB, 1 << 40]


def test_a_backend_in_a_directory_is_found_by_the_file_that_qemu_makes():
    name = "/dev/hugepages/libvirt/qemu/3-web/qemu_back_mem._objects_ram-node{}.AbCdEf (deleted)"
    found = extents(
        mapped(BASE, GIB, name.format(1), 11), mapped(BASE + 2 * GIB, GIB, name.format(0), 12)
    )
    backends = [
        (Backend("file", f"ram-node{i}", GIB, "/dev/hugepages/libvirt/qemu/3-web"), GIB)
        for i in range(2)
    ]
    (layout,) = qemu_layouts(found, backends, 2 * GIB)
    assert placed(layout) == [(0, BASE + 2 * GIB, GIB), (GIB, BASE, GIB)]


def test_memory_whose_mapping_the_kernel_split_is_put_together():
    pieces = [mapped(BASE + i * GIB, GIB) for i in range(3)]
    backends = [(Backend("ram", "pc.ram", 3 * GIB), 3 * GIB)]
    (layout,) = qemu_layouts(extents(*pieces), backends, 3 * GIB)
    assert placed(layout) == [(0, BASE, 3 * GIB)]
    assert len(joined(extents(*pieces))) == 1


def test_many_equal_backends_are_bounded():
    found = extents(*(mapped(BASE + 2 * i * GIB, GIB) for i in range(64)))
    backends = [(Backend("ram", f"n{i}", GIB), GIB) for i in range(64)]
    assert len(qemu_layouts(found, backends, 2 * GIB)) <= 24


def test_a_process_of_many_mappings_holds_nobody_up():
    page, many = 4096, 60_000
    base = 0x7F0000000000
    every = [
        Mapping(
            base + at * page,
            base + (at + 1) * page,
            "rw-s" if at % 2 else "rw-p",
            (at * 7919 % many) * page if at % 2 else 0,
            5 if at % 2 else 0,
            "/dev/shm/x" if at % 2 else "",
        )
        for at in range(many)
    ]
    begin_s = time.monotonic()
    found = find_extents(every, lambda mapping: None, lambda mapping: page)
    assert 0 < len(found) <= 512
    assert [extent.start for extent in found] == sorted(extent.start for extent in found)
    assert time.monotonic() - begin_s < 10


def test_crosvm_by_the_offsets_of_its_one_file():
    """640 KiB, the area of the ROMs, the rest below the hole, and what is above it."""
    low = 13 * GIB // 4
    cuts = [0, 640 << 10, MIB, low, 5 * GIB]
    found = extents(
        *(
            mapped(BASE - i * 8 * GIB, end - start, "/memfd:crosvm_guest (deleted)", 5, start)
            for i, (start, end) in enumerate(pairwise(cuts))
        ),
        file_bytes=5 * GIB,
    )
    (layout,) = two_part_layouts(sorted(found, key=lambda e: e.start), HOLE_STARTS["crosvm"], None)
    assert placed(layout) == [
        (0, BASE, 640 << 10),
        (640 << 10, BASE - 8 * GIB, 384 << 10),
        (MIB, BASE - 16 * GIB, low - MIB),
        (FOUR_GIB, BASE - 24 * GIB, 5 * GIB - low),
    ]


def test_cloud_hypervisor_with_a_file_for_each_side():
    found = extents(
        mapped(BASE, 2 * GIB, "/memfd:ch_ram (deleted)", 7),
        mapped(BASE + 4 * GIB, 3 * GIB, "/memfd:ch_ram (deleted)", 6),
        mapped(BASE + 16 * GIB, 3 * GIB),
    )
    layouts = two_part_layouts(found, HOLE_STARTS["cloud-hypervisor"], 5 * GIB)
    assert [placed(layout) for layout in layouts] == [
        [(0, BASE + 4 * GIB, 3 * GIB), (FOUR_GIB, BASE, 2 * GIB)]
    ]


def test_a_merged_mapping_has_the_upper_memory_first():
    found = extents(mapped(BASE, 4 * GIB))
    layouts = two_part_layouts(found, (3 * GIB,), 4 * GIB)
    assert placed(layouts[0]) == [(0, BASE + GIB, 3 * GIB), (FOUR_GIB, BASE, GIB)]
    assert placed(layouts[1]) == [(0, BASE, 3 * GIB), (FOUR_GIB, BASE + 3 * GIB, GIB)]


def test_stacks_code_and_reservations_are_no_guest_memory():
    assert (
        extents(
            mapped(BASE, 8 * MIB, "[stack]"),
            Mapping(BASE + GIB, BASE + 2 * GIB, "---p", 0, 0, ""),
            Mapping(BASE + 3 * GIB, BASE + 4 * GIB, "r-xp", 0, 9, "/usr/lib/x.so"),
        )
        == []
    )


def region(name: str, gpa: int, hva: int, length: int, offset: int | None = None) -> Region:
    return Region(name, gpa, hva, length, "memfd", 4096, offset)


def test_addresses_translate_over_the_pci_hole():
    guest = MemoryMap(
        (
            region("below-4g", 0, BASE, 3 * GIB, 0),
            region("above-4g", FOUR_GIB, BASE + 3 * GIB, GIB, 3 * GIB),
        )
    )
    hva = np.array([BASE, BASE + 3 * GIB - 4096, BASE + 3 * GIB, BASE + 4 * GIB, 5], np.uint64)
    assert guest.gpa_of_hva(hva).tolist() == [0, 3 * GIB - 4096, FOUR_GIB, -1, -1]


def test_what_two_maps_agree_on_is_cut_out_of_both():
    one = (region("a", 0, BASE, 3 * GIB, 0), region("b", FOUR_GIB, BASE + 3 * GIB, GIB, 3 * GIB))
    other = (region("a", 0, BASE, 2 * GIB, 0), region("b", FOUR_GIB, BASE + 2 * GIB, 2 * GIB))
    assert agreed([one, other]) == (region("a", 0, BASE, 2 * GIB, 0),)
    assert agreed([one]) == one
    assert agreed([]) == ()
