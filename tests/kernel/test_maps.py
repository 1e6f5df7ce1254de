"""BPF maps that change while they are read."""

import os

from tracer.engine.map_creation import Shape, make_map
from tracer.engine.maps import Map

_HASH = 1
_ENTRIES = 64


def test_each_entry_is_read_once_while_others_go() -> None:
    fd = make_map("changing", Shape(_HASH, 8, 8, 2 * _ENTRIES, 0))
    try:
        entries = Map(fd, "unsigned long long", "unsigned long long")
        for number in range(_ENTRIES):
            entries[entries.Key(number)] = entries.Leaf(number)
        seen = []
        for key, leaf in entries.items():
            assert leaf.value == key.value
            seen.append(key.value)
            # As a thread does that ends its request: from here the kernel begins anew.
            if len(seen) % 8 == 0:
                del entries[key]
                entries[key] = leaf
                del entries[key]
        assert len(seen) == len(set(seen)) == _ENTRIES
    finally:
        os.close(fd)
