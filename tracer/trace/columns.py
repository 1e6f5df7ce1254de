"""Arrow columns as flat numpy arrays, without copies where there are none to make."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc


class FlatRuns(NamedTuple):
    """The runs of many requests, end to end.

    Attributes:
        offsets: int64[n + 1]; request i has runs offsets[i] to offsets[i + 1].
        pfn: uint64[m]: first PFN of each run, in wire order.
        pages: int32[m]: 4 KiB pages, negative where the PFNs fall.
    """

    offsets: npt.NDArray[np.int64]
    pfn: npt.NDArray[np.uint64]
    pages: npt.NDArray[np.int32]


def flat_runs(column: pa.ChunkedArray) -> FlatRuns:
    """Flatten the `runs` column of the requests table; a request whose runs are null has none."""
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy().astype(np.int64)
    items = [chunk.flatten() for chunk in column.chunks]
    pfn = [item.field("pfn").to_numpy() for item in items]
    pages = [item.field("pages").to_numpy() for item in items]
    return FlatRuns(
        np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]),
        pfn[0] if len(pfn) == 1 else np.concatenate([np.empty(0, np.uint64), *pfn]),
        pages[0] if len(pages) == 1 else np.concatenate([np.empty(0, np.int32), *pages]),
    )
