"""Offsets from the running kernel's own type information."""

import pytest

from tracer.engine.libbpf import Btf
from tracer.errors import ProbeError


def test_a_path_goes_through_structs_that_hold_each_other():
    btf = Btf()
    tasks = btf.member_offset_bytes("task_struct", "tasks")
    assert btf.member_offset_bytes("task_struct", "tasks", "next") == tasks > 0
    assert btf.member_offset_bytes("task_struct", "tasks", "prev") == tasks + 8


def test_members_of_anonymous_unions_are_their_owners():
    """struct page has had its list head in a union in a union since 4.18 (linux/mm_types.h)."""
    btf = Btf()
    lru = btf.member_offset_bytes("page", "lru")
    assert lru == 8
    assert btf.member_offset_bytes("page", "lru", "prev") == lru + 8


@pytest.mark.parametrize("path", [("nothing",), ("tasks", "nothing"), ("tasks", "next", "next")])
def test_a_member_that_is_not_there_is_named(path):
    with pytest.raises(ProbeError, match=f"no member {'.'.join(path)}"):
        Btf().member_offset_bytes("task_struct", *path)
