"""Typed face of ownership.c: a plan followed request by request, beside who owns each page."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag
from typing import NamedTuple

import numpy as np

from replay.native.binding import array, load
from replay.native.selecting import (
    RegionColumns,
    RequestColumns,
    layout_struct,
    requests_struct,
)
from replay.native.types import Bytes, Times, Words

CODES = 256
"""Of advice: it is one byte."""


class Deed(IntFlag):
    """What an advice does to pages; `enum aero_deed` of plans.h."""

    DESTROYS = 1
    GIVES = 2
    FREES_NOW = 4
    FILLS_AGAIN = 8


class Known(IntFlag):
    """What is known of a page once a plan was followed; `enum aero_known`."""

    OWNED = 1
    GIVEN = 2
    WENT = 4


class PlanColumns(NamedTuple):
    """Operations of a plan in order of their requests."""

    advice: Bytes
    offset_bytes: Words
    length_bytes: Words
    request: Times


class Surveyed(NamedTuple):
    """The lowest page that operations touch in no region (-1: none), and pages they destroy."""

    stray_page: int
    destroyed_pages: int


class Followed(NamedTuple):
    """What became of a plan.

    Args:
        state: uint8[pages of memory], `Known` bits.
        wrong_page: The lowest page that is destroyed while the guest owns it; -1: none.
        wrong_request: The request that it is destroyed with.
        owed_pages: Pages of lent blocks that were not given back in their request.
    """

    state: Bytes
    wrong_page: int
    wrong_request: int
    owed_pages: int


def survey(plan: PlanColumns, deeds: Mapping[int, Deed], regions: RegionColumns) -> Surveyed:
    """Look where operations lie and how many pages they destroy, without going through pages.

    Args:
        plan: The operations, wholly inside the memory.
        deeds: What each advice code does; nothing where left out.
        regions: Where guest memory lies.

    Raises:
        NativeError: The extension is not built.
    """
    ffi, lib = load()
    ops, _held = _operations(plan)
    layout, _columns = layout_struct(ffi, regions)
    found = ffi.new("struct aero_surveyed *")
    lib.aero_survey(ops, array(ffi, _table(deeds), np.uint8), layout, found)
    return Surveyed(found.stray_page, found.destroyed_pages)


def follow(
    requests: RequestColumns,
    plan: PlanColumns,
    deeds: Mapping[int, Deed],
    lent: tuple[Times, Times, Times],
    memory: tuple[RegionColumns, int],
) -> Followed:
    """Go through requests and operations side by side, and stop where guest data is destroyed.

    Args:
        requests: The requests.
        plan: Operations that `survey` found inside regions, in order of the requests.
        deeds: As for `survey`.
        lent: First page, pages and request of blocks that the guest lends for that request.
        memory: Where guest memory lies, and how many pages the replayed memory has.

    Raises:
        NativeError: The extension is not built.
    """
    ffi, lib = load()
    ops, _held = _operations(plan)
    asked, _requests = requests_struct(ffi, requests)
    layout, _regions = layout_struct(ffi, memory[0])
    columns = [array(ffi, np.ascontiguousarray(column), np.int64) for column in lent]
    blocks = ffi.new("struct aero_blocks *", [*columns, len(lent[0])])
    state = np.zeros(memory[1], np.uint8)
    found = ffi.new("struct aero_followed *")
    table = array(ffi, _table(deeds), np.uint8)
    lib.aero_follow(asked, layout, ops, table, blocks, array(ffi, state, np.uint8), found)
    return Followed(state, found.wrong_page, found.request, found.owed_pages)


def _operations(plan: PlanColumns) -> tuple[object, list[object]]:
    """The C view, and what must stay alive with it."""
    ffi = load()[0]
    if len({len(column) for column in plan}) != 1:
        raise ValueError("the columns of a plan differ in length")
    advice, offset, length, request = (np.ascontiguousarray(column) for column in plan)
    held = [
        array(ffi, advice, np.uint8),
        array(ffi, offset, np.uint64),
        array(ffi, length, np.uint64),
        array(ffi, request, np.int64),
    ]
    none = [ffi.NULL, ffi.NULL]
    return ffi.new("struct aero_ops *", [*held[:3], len(advice), *none, held[3]]), held


def _table(deeds: Mapping[int, Deed]) -> Bytes:
    table = np.zeros(CODES, np.uint8)
    for code, deed in deeds.items():
        table[code] = deed
    return table
