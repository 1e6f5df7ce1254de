"""What a driver puts into a request, for tests of what reads it; plans are sent otherwise."""

import struct
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from replay.wire import (
    MAX_ENTRIES,
    MAX_PFNS,
    MAX_WORDS,
    close_requests,
    descriptors,
    range_words,
)


def encode_pfns(pfns: npt.ArrayLike) -> list[bytes]:
    """PFNs as the Linux driver sends them: le32, at most 256 a request."""
    data = np.asarray(pfns).astype("<u4").tobytes()
    step = MAX_PFNS * 4
    return [data[at : at + step] for at in range(0, len(data), step)]


def encode_range_words(start: npt.ArrayLike, pages: npt.ArrayLike) -> list[bytes]:
    """Ranges as the seed's driver should send them: at most 4096 words a request.

    The driver of the patch used the extended form only above 4096 pages, so that exactly 4096
    came out as another range; here it begins at 4096.

    Args:
        start: First PFN of each range, below 2**52.
        pages: Pages of each, at least 1.
    """
    words, size = range_words(
        np.asarray(start).astype(np.int64), np.asarray(pages).astype(np.int64)
    )
    behind = np.cumsum(size)
    closes = close_requests(size, np.zeros(len(size), np.int64), MAX_WORDS)
    bounds = np.concatenate(([0], behind[closes])).tolist()
    return [
        struct.pack("<BBHI", 0, 0, 0, 8 * (end - begin)) + words[begin:end].tobytes()
        for begin, end in pairwise(bounds)
    ]


def encode_scatterlist(start: npt.ArrayLike, pages: npt.ArrayLike) -> list[bytes]:
    """Ranges as device-writable descriptors of the ring, at most 32 a request."""
    entries = descriptors(np.asarray(start).astype(np.int64), np.asarray(pages).astype(np.int64))
    steps = range(0, len(entries), MAX_ENTRIES)
    return [entries[at : at + MAX_ENTRIES].tobytes() for at in steps]
