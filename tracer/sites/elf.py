"""What an ELF file says about its code: symbols, function bounds, call sites, build id.

The only module that imports elftools. Addresses are ELF virtual addresses unless they are named
`file_offset`, which is what a uprobe is attached to. The file may be anybody's: see elf_bounds.py.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tracer.errors import SymbolError
from tracer.sites.elf_bounds import (
    LONGEST_FUNCTION_BYTES,
    MOST_REFERENCES,
    MOST_SECTIONS,
    REMEDY,
    bounded,
    is_empty,
)

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

_CALL_REL32 = 0xE8
_JUMP_REL32 = 0xE9
_CALL_BYTES = 5
_LEA_BYTES = 3
"""Bytes of `lea disp32(%rip), %reg` before the displacement: REX, opcode 8D, ModRM."""
_DW_EH_PE_SDATA4_DATAREL = 0x3B


@dataclass(frozen=True, slots=True)
class Function:
    """Bounds of one function's code: `start <= address < end`."""

    start: int
    end: int

    def holds(self, address: int) -> bool:
        """Say whether `address` lies inside."""
        return self.start <= address < self.end


class Binary:
    """One x86-64 executable or shared object, read once into memory.

    Args:
        path: The file; `/proc/PID/exe` follows a deleted or replaced executable.

    Raises:
        SymbolError: The file cannot be read or is not a 64-bit x86 ELF file.
    """

    def __init__(self, path: Path) -> None:
        from elftools.common.exceptions import ELFError
        from elftools.elf.elffile import ELFFile

        self.path = path
        try:
            self._file = path.open("rb")
            self._elf: ELFFile = ELFFile(self._file)
        except (OSError, ELFError) as error:
            raise SymbolError(f"cannot read the program file {path}", reason=str(error)) from error
        machine, sections = self._elf["e_machine"], self._elf.num_sections()
        if machine == "EM_X86_64" and sections <= MOST_SECTIONS:
            return
        reason = f"machine is {machine}, only x86-64 code is understood"
        if machine == "EM_X86_64":
            reason = f"it says that it has {sections} sections"
        self._file.close()
        raise SymbolError(f"cannot look for probe points in {path}", reason=reason, remedy=REMEDY)

    def close(self) -> None:
        """Close the file; sections already read stay usable."""
        self._file.close()

    @cached_property
    def build_id(self) -> str | None:
        """The GNU build id in hexadecimal, or None where the file has none."""
        section: Any
        for section in self._elf.iter_sections():
            if section["sh_type"] == "SHT_NOTE":
                for note in bounded(section, self.path).iter_notes():
                    if note["n_type"] == "NT_GNU_BUILD_ID":
                        return str(note["n_desc"])
        return None

    @cached_property
    def _addresses(self) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        for name in (".dynsym", ".symtab"):
            section: Any = self._elf.get_section_by_name(name)
            if section is None or is_empty(section):
                continue
            for symbol in bounded(section, self.path).iter_symbols():
                address = int(symbol["st_value"])
                if symbol["st_shndx"] != "SHN_UNDEF" and address:
                    known = found.get(symbol.name, ())
                    if address not in known:
                        found[symbol.name] = (*known, address)
        return found

    @cached_property
    def symbols(self) -> dict[str, int]:
        """Every defined symbol of .dynsym and .symtab: name to its first address."""
        return {name: addresses[0] for name, addresses in self._addresses.items()}

    def addresses(self, name: str) -> tuple[int, ...]:
        """Return every address a symbol is defined at: static functions may share a name."""
        return self._addresses.get(name, ())

    @cached_property
    def has_symtab(self) -> bool:
        """Whether the file was left unstripped."""
        return self._elf.get_section_by_name(".symtab") is not None

    def section_bytes(self, name: str) -> tuple[int, bytes] | None:
        """Return a section's address and content, or None where there is no such section."""
        section = self._elf.get_section_by_name(name)
        if section is None:
            return None
        return int(section["sh_addr"]), bounded(section, self.path).data()

    def file_offset(self, address: int) -> int:
        """Translate an address to the file offset that a uprobe wants.

        Raises:
            SymbolError: No loadable segment holds the address.
        """
        for segment in self._elf.iter_segments():
            if segment["p_type"] == "PT_LOAD":
                start = int(segment["p_vaddr"])
                if start <= address < start + int(segment["p_filesz"]):
                    return address - start + int(segment["p_offset"])
        raise SymbolError(f"address {address:#x} is in no loaded segment of {self.path}")

    @cached_property
    def _text(self) -> tuple[int, np.ndarray]:
        found = self.section_bytes(".text")
        if found is None:
            raise SymbolError(f"{self.path} has no .text section")
        return found[0], np.frombuffer(found[1], dtype=np.uint8)

    def code(self, address: int, length_bytes: int) -> bytes:
        """Return machine code of .text at `address`."""
        base, text = self._text
        start = address - base
        return text[start : start + length_bytes].tobytes()

    @cached_property
    def functions(self) -> np.ndarray:
        """Starts of all functions known to .eh_frame_hdr, and their FDE addresses.

        Returns:
            int64[n, 2], sorted by start. The table is in the Linux Standard Base (5.0, 10.6.2);
            stripping keeps it, since C++ exceptions and backtraces need it.
        """
        found = self.section_bytes(".eh_frame_hdr")
        if found is None:
            raise SymbolError(
                f"cannot find function bounds in {self.path}", reason="it has no .eh_frame_hdr"
            )
        base, data = found
        if data[0] != 1 or data[3] != _DW_EH_PE_SDATA4_DATAREL:
            raise SymbolError(f"the .eh_frame_hdr of {self.path} has an encoding not known here")
        (count,) = struct.unpack_from("<I", data, 8)
        count = min(count, (len(data) - 12) // 8)
        return np.frombuffer(data, dtype="<i4", offset=12, count=2 * count).reshape(
            -1, 2
        ) + np.int64(base)

    def function_at(self, address: int) -> Function | None:
        """Return the function whose code holds `address`, by its frame description entry."""
        starts = self.functions[:, 0]
        row = int(np.searchsorted(starts, address, side="right")) - 1
        if row < 0:
            return None
        start, entry = (int(value) for value in self.functions[row])
        if self._eh_frame is None:
            return None
        base, data = self._eh_frame
        if not 0 <= entry - base <= len(data) - 16:
            return None
        (length_bytes,) = struct.unpack_from("<I", data, entry - base + 12)
        function = Function(start, start + min(length_bytes, LONGEST_FUNCTION_BYTES))
        return function if function.holds(address) else None

    @cached_property
    def _eh_frame(self) -> tuple[int, bytes] | None:
        return self.section_bytes(".eh_frame")

    def references(self, target: int) -> np.ndarray:
        """Find instructions that address `target` relative to the instruction pointer.

        Args:
            target: Address of a variable or function.

        Returns:
            int64[n]: addresses of the 4-byte displacement inside each instruction. An immediate of
            0, 1, 2 or 4 bytes may follow; all four readings are tried, so a hit is a candidate that
            the caller confirms by where it lies.

        Raises:
            SymbolError: There are more than any QEMU has.
        """
        base, text = self._text
        hits = [self._relative(text, base, target, immediate) for immediate in (0, 1, 2, 4)]
        found = np.unique(np.concatenate(hits))
        if len(found) <= MOST_REFERENCES:
            return found
        reason = f"{len(found)} instructions seem to"
        raise SymbolError(
            f"cannot find what uses {target:#x} in {self.path}", reason=reason, remedy=REMEDY
        )

    @staticmethod
    def _relative(text: np.ndarray, base: int, target: int, immediate: int) -> np.ndarray:
        found = []
        for shift in range(4):
            usable = (len(text) - shift) // 4 * 4
            words = text[shift : shift + usable].view("<i4").astype(np.int64)
            where = np.arange(len(words), dtype=np.int64) * 4 + (base + shift)
            found.append(where[words + where + (4 + immediate) == target])
        return np.concatenate(found)

    def calls(self, target: int, inside: Function) -> list[int]:
        """Find the direct calls and tail jumps of `target` inside one function.

        Returns:
            Addresses of the call instructions (E8 or E9 with a 32-bit displacement), rising.
        """
        code = self.code(inside.start, inside.end - inside.start)
        sites = []
        for at in range(len(code) - _CALL_BYTES + 1):
            if code[at] in (_CALL_REL32, _JUMP_REL32):
                (displacement,) = struct.unpack_from("<i", code, at + 1)
                if inside.start + at + _CALL_BYTES + displacement == target:
                    sites.append(inside.start + at)
        return sites

    def addresses_taken(self, inside: Function) -> list[Function]:
        """Return the functions whose start some `lea disp(%rip), %reg` in this one takes."""
        code = self.code(inside.start, inside.end - inside.start)
        found = []
        for at in range(len(code) - _LEA_BYTES - 3):
            # REX.W with any register extension, opcode 8D, ModRM of RIP-relative addressing.
            if code[at] & 0xF8 == 0x48 and code[at + 1] == 0x8D and code[at + 2] & 0xC7 == 0x05:
                (displacement,) = struct.unpack_from("<i", code, at + _LEA_BYTES)
                target = inside.start + at + _LEA_BYTES + 4 + displacement
                function = self.function_at(target)
                if function is not None and function.start == target:
                    found.append(function)
        return found

    def notes(self, kind: str) -> list[str]:
        """Return provider:name of each USDT probe note where `kind` is "stapsdt"."""
        section: Any = self._elf.get_section_by_name(f".note.{kind}")
        if section is None:
            return []
        names = []
        for note in bounded(section, self.path).iter_notes():
            desc = note["n_descdata"] if "n_descdata" in note else note["n_desc"]
            raw = desc if isinstance(desc, bytes) else str(desc).encode("latin-1")
            provider, name = raw[24:].split(b"\0")[:2]
            names.append(f"{provider.decode()}:{name.decode()}")
        return names
