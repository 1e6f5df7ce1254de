"""Our BPF programs: compiled elsewhere or before; maps made and instructions loaded here."""

from __future__ import annotations

import importlib.resources
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tracer.engine.attachments import Attachments
from tracer.engine.bpf_programs import EMPTY, load_program
from tracer.engine.compile_cache import compile_once
from tracer.engine.compiled import Compiled, MapDescription
from tracer.engine.map_creation import create_ring, make_map, put_descriptor
from tracer.engine.maps import Map
from tracer.trace.errors import AerostatError

_LOAD_IMMEDIATE, _OPCODE = 0x18, 0xFF
_PSEUDO_MAP_FD = 1
"""BPF_LD|BPF_IMM|BPF_DW with this source register takes a map, by its descriptor
(include/uapi/linux/bpf.h)."""
_AGAIN = "again_"
"""Before a program's name: the array through which that program has itself run again."""
_INNER = "ring_of_"
"""Before the name of an array of maps: the map in bpf/ that says of what kind they are."""


def _joined(root: Path, sources: tuple[str, ...]) -> str:
    """Join the parts of a program; BCC rewrites map accesses in one file alone, not in headers."""
    parts = [f'#line 1 "{name}"\n{(root / name).read_text()}' for name in sources]
    return "\n".join(parts)


def with_maps(text: bytes, descriptors: dict[int, int]) -> bytes:
    """Put this process's descriptors into instructions in the place of the compiler's.

    Args:
        text: Instructions, 8 bytes each.
        descriptors: Ours by the compiler's.
    """
    words = np.frombuffer(text, "<u8").copy()
    takes_map = (words & _OPCODE == _LOAD_IMMEDIATE) & (words >> 12 & 0xF == _PSEUDO_MAP_FD)
    for at in np.flatnonzero(takes_map):
        word = int(words[at])
        words[at] = word & 0xFFFFFFFF | descriptors[word >> 32] << 32
    return words.tobytes()


class Program(Attachments):
    """One compiled BPF source with its attachments.

    Args:
        sources: File names in bpf/ that make one source together, in this order.
        defines: Macros: constants come in this way, the text is never edited.
        ring_bytes: Sizes of rings by name, in place of the source's: each a power of two of pages.

    Raises:
        BccError: BCC is missing, does not compile the source, or may not make its maps.
        ProbeError: The kernel makes no ring of that size.
    """

    def __init__(
        self,
        sources: tuple[str, ...],
        defines: dict[str, int],
        ring_bytes: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self._sources = sources
        compiled = self._compiled(defines)
        self._described = compiled.maps
        self._ring_bytes = ring_bytes or {}
        self._fds: dict[str, int] = {}
        self._maps: dict[str, Map] = {}
        self._loaded: dict[tuple[str, int], int] = {}
        try:
            for name, described in compiled.maps.items():
                self._fds[name] = self._made(name, described)
        except AerostatError:
            self.close()
            raise
        self._functions = self._texts(compiled)
        self._variants: dict[tuple[tuple[str, int], ...], dict[str, bytes]] = {}

    def _compiled(self, defines: dict[str, int]) -> Compiled:
        root = Path(str(importlib.resources.files("bpf")))
        flags = [f"-I{root}", *(f"-D{name}={value:#x}" for name, value in defines.items())]
        return compile_once(", ".join(self._sources), _joined(root, self._sources), flags, root)

    def _texts(self, compiled: Compiled) -> dict[str, bytes]:
        """Instructions of each program, with the maps that are there."""
        ours = {each.number: self._fds[name] for name, each in compiled.maps.items()}
        return {name: with_maps(text, ours) for name, text in compiled.functions.items()}

    def switch(self, function: str, defines: dict[str, int]) -> None:
        """Take one program from the same source compiled with other macros; the maps stay.

        Args:
            function: The program, which is not attached yet.
            defines: All macros; the maps that they make are those that are there.

        Raises:
            BccError: BCC does not compile the source with these.
        """
        key = tuple(sorted(defines.items()))
        if key not in self._variants:
            self._variants[key] = self._texts(self._compiled(defines))
        self._functions[function] = self._variants[key][function]

    def _made(self, name: str, described: MapDescription) -> int:
        if name in self._ring_bytes:
            return create_ring(name, self._ring_bytes[name])
        inner = self._fds[_INNER + name] if described.shape.holds_maps else None
        return make_map(name, described.shape, inner)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach every probe that was not claimed, unload, and free the maps."""
        self.detach()
        for fd in (*self._loaded.values(), *self._fds.values()):
            os.close(fd)
        self._loaded.clear()
        self._fds.clear()

    def map_fd(self, name: str) -> int:
        """Return the descriptor of a map; it stays ours."""
        return self._fds[name]

    def counter(self, index: int) -> int:
        """Sum one entry of the per-CPU array `counters` over all CPUs."""
        return self["counters"].total(index)

    def __getitem__(self, name: str) -> Map:
        """Return a map."""
        if name not in self._maps:
            described = self._described[name]
            self._maps[name] = Map(self._fds[name], described.key, described.leaf)
        return self._maps[name]

    def _load(self, function: str, kind: int) -> int:
        if (function, kind) not in self._loaded:
            program = load_program(kind, self._text(function), function)
            self._loaded[function, kind] = program  # first, so that it is closed whatever comes
            self._loaded_as(function, program)
        return self._loaded[function, kind]

    def _loaded_as(self, function: str, program: int) -> None:
        """Let a program call itself where its source has an array for that."""
        if _AGAIN + function in self._fds:
            put_descriptor(self._fds[_AGAIN + function], 0, program, f"{function} for itself")

    def _text(self, function: str) -> bytes:
        return self._functions[function]


class EmptyPrograms(Attachments):
    """Programs that do nothing, to time what leads to a program; made without a compiler."""

    def __init__(self) -> None:
        super().__init__()
        self._loaded: dict[tuple[str, int], int] = {}

    def __enter__(self) -> EmptyPrograms:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Detach and unload."""
        self.detach()
        for program in self._loaded.values():
            os.close(program)
        self._loaded.clear()

    def _load(self, function: str, kind: int) -> int:
        if (function, kind) not in self._loaded:
            self._loaded[function, kind] = load_program(kind, EMPTY, function)
        return self._loaded[function, kind]

    def _text(self, function: str) -> bytes:
        return EMPTY

    def _loaded_as(self, function: str, program: int) -> None:
        pass
