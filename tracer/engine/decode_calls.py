"""Turns records of system calls into Arrow batches: runs of them, and calls by themselves.

Runs are HOST_CALLS of decode.py. Calls that are not merged come in HOST_CALL, and become the rows
that runs of one call would.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tracer.engine.decode import batch, known
from tracer.engine.ring import Records
from tracer.trace.schema import CALLS, Call, Side

HOST_CALL = np.dtype(
    [
        ("token", np.uint64),
        ("address", np.uint64),
        ("length_bytes", np.uint64),
        ("first_ns", np.uint64),
        ("last_ns", np.uint64),
        ("advice", np.int32),
        ("tid", np.uint32),
        ("fd_or_pieces", np.uint32),
        ("error", np.uint16),
        ("call", np.uint8),
        ("later", np.uint8),
    ],
    align=True,
)
"""struct host_call of bpf/records.h."""


def host_calls(
    records: Records, seq: npt.NDArray[np.int64], gpa: npt.NDArray[np.int64]
) -> pa.RecordBatch:
    """Build rows of the calls table.

    Args:
        records: HOST_CALLS[n] or HOST_CALL[n].
        seq: int64[n], number of the request that each row belongs to, -1 for none.
        gpa: int64[n], guest-physical address of each row's first call, -1 where it is not known.
    """
    return batch(
        CALLS,
        len(records),
        side=np.full(len(records), Side.HOST, np.uint8),
        request_seq=known(seq.view(np.uint64), seq < 0),
        tid=records["tid"].view(np.int32),
        call=records["call"].astype(np.uint8),
        advice=records["advice"],
        hva=known(records["address"], records["call"] == Call.FALLOCATE),
        gpa=known(gpa.view(np.uint64), gpa < 0),
        length_bytes=records["length_bytes"],
        first_ns=records["first_ns"].view(np.int64),
        last_ns=records["last_ns"].view(np.int64),
        errno=records["error"].astype(np.int32),
        **(_single_columns(records) if _is_single(records) else _run_columns(records)),
    )


def _is_single(records: Records) -> bool:
    return "later" in (records.dtype.names or ())


def call_descriptors(records: Records) -> npt.NDArray[np.uint32]:
    """Name the descriptor of each hole punch.

    Args:
        records: HOST_CALLS[n] or HOST_CALL[n].

    Returns:
        uint32[n], of no meaning where a call is none.
    """
    return np.asarray(records["fd_or_pieces" if _is_single(records) else "fd"], np.uint32)


def _run_columns(records: Records) -> dict[str, Any]:
    return {
        "step": records["step"].astype(np.int8),
        "count": records["count"],
        "total_ns": records["total_ns"].view(np.int64),
        "worst_ns": records["worst_ns"].view(np.int64),
        "pieces": known(records["pieces"], records["pieces"] == 0),
    }


def _single_columns(records: Records) -> dict[str, Any]:
    """What is the same in every single call, and what follows from its two times."""
    took_ns = (records["last_ns"] - records["first_ns"]).view(np.int64)
    took_ns[records["later"] != 0] = 0
    pieces = records["fd_or_pieces"]
    is_vector = (records["call"] == Call.PROCESS_MADVISE) & (pieces > 0)
    return {
        "step": np.zeros(len(records), np.int8),
        "count": np.ones(len(records), np.uint32),
        "total_ns": took_ns,
        "worst_ns": took_ns,
        "pieces": known(pieces, ~is_vector),
    }
