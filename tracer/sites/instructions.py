"""Which instructions the kernel emulates when a uprobe sits on them, and which it single-steps.

A single-stepped instruction takes a second trap, so a hit on it costs about ten times as much
(docs/measuring.md). The rules are those of arch/x86/kernel/uprobes.c: branch_setup_xol_ops (since
3.16) emulates relative jumps and calls and nops, push_setup_xol_ops (since 5.0) pushes of one
register. What a newer kernel emulates besides is counted as single-stepped: never the other way.

endbr64, with which functions begin in a program built for CET, is no nop to it:
branch_setup_xol_ops knows 0x90, since 6.16 also the long nops (0f 1f), and none of the other hints
(0f 1e). A pause, 0x90 behind a prefix, it takes for one no more since 6.19 (insn_is_nop of
arch/x86/lib/insn-eval.c).
"""

from collections.abc import Iterable

LONGEST_INSTRUCTION_BYTES = 15
ENDBR64 = b"\xf3\x0f\x1e\xfa"
_LEGACY_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\x64\x65\x66\x67\xf0\xf2\xf3")
_REFUSED_PREFIXES = frozenset(b"\x26\x2e\x36\x3e\xf0")
"""is_prefix_bad of the same file: no uprobe is set on an instruction with one of these."""
_OPERAND_SIZE, _REPEAT = 0x66, 0xF3
_REX = range(0x40, 0x50)
_REX_B = 0x41
_NOP = 0x90
_PUSHES = range(0x50, 0x58)
_SHORT_CONDITIONAL_JUMPS = range(0x70, 0x80)
_NEAR_CONDITIONAL_JUMPS = range(0x80, 0x90)
_CALL, _JUMP, _SHORT_JUMP = 0xE8, 0xE9, 0xEB
_TWO_BYTES = 0x0F


def is_emulated(code: bytes) -> bool:
    """Say whether the kernel emulates the first instruction of some code under a uprobe.

    Args:
        code: Machine code at the site, LONGEST_INSTRUCTION_BYTES or as many as there are.

    Returns:
        False for a single-stepped instruction, and for one that a uprobe is refused on.
    """
    at = 0
    while at < len(code) and code[at] in _LEGACY_PREFIXES:
        at += 1
    prefixes = code[:at]
    rex = code[at] if at < len(code) and code[at] in _REX else None
    opcode = code[at + (rex is not None) :][:2]
    if not opcode or _REFUSED_PREFIXES & set(prefixes):
        return False
    if opcode[0] in _PUSHES:
        return not prefixes and rex in (None, _REX_B)
    if _OPERAND_SIZE in prefixes:
        # Refused; since 6.2 (and in stable series) emulated if it is a nop.
        return False
    if opcode[0] == _NOP:
        return rex is None and _REPEAT not in prefixes
    if opcode[0] == _TWO_BYTES:
        return len(opcode) > 1 and opcode[1] in _NEAR_CONDITIONAL_JUMPS
    return opcode[0] in (_CALL, _JUMP, _SHORT_JUMP) or opcode[0] in _SHORT_CONDITIONAL_JUMPS


def cheapest_site(candidates: Iterable[tuple[int, bytes]]) -> tuple[int, bool]:
    """Choose where to put a uprobe among places that tell the same.

    Args:
        candidates: Address and code of each, the preferred one first; at least one.

    Returns:
        The address of the first one whose instruction the kernel emulates, else of the first one;
        and whether the kernel emulates it.
    """
    places = list(candidates)
    for address, code in places:
        if is_emulated(code):
            return address, True
    return places[0][0], False
