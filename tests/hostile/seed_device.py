"""What the device of the patch of 2016 does with a request: told and not carried out.

Written from the patch's description of itself, in other words and only as far as its thirteen
defects need. It stands in tests alone, to show that an input really is one that the patch fails on.
"""

import struct
from dataclasses import dataclass, field

PAGE = 4096
HEADER = 8
WRAP = 1 << 64


@dataclass
class Told:
    """What the patch would do.

    Args:
        allocated_bytes: What it sets aside because the guest says so.
        stale_bytes: Bytes of header and payload that it uses though nobody wrote them.
        read_behind_bytes: Bytes that it reads behind its buffer.
        advised: (gpa that it takes for the begin, bytes) of each madvise.
        steps: Turns of its loop over chunks; cut off at MAX_STEPS.
        lookups: Searches of the memory map.
        references: Regions that it holds and never lets go.
        used_length: What it tells the guest that it wrote.
    """

    allocated_bytes: int = 0
    stale_bytes: int = 0
    read_behind_bytes: int = 0
    advised: list[tuple[int, int]] = field(default_factory=list)
    steps: int = 0
    lookups: int = 0
    references: int = 0
    used_length: int = 0


MAX_STEPS = 100_000


def seed_device(
    data: bytes, memory: list[tuple[int, int]], *, inhibited: bool = False, order: str = "little"
) -> Told:
    """Follow one request.

    Args:
        data: Header and payload as sent.
        memory: (gpa, bytes) of each region, ascending.
        inhibited: The host may not discard.
        order: Byte order of the host, since the patch converts nothing.
    """
    # It pushes with the offset that its reading has reached, which is behind the header.
    told = Told(used_length=HEADER)
    # A bit field of 64: command, flag, id, and in the upper half the length of the payload.
    header = int.from_bytes(data[:8].ljust(8, b"\xee"), order)  # type: ignore[arg-type]
    told.stale_bytes += max(8 - len(data), 0)
    length = header >> 32
    told.allocated_bytes = length
    told.stale_bytes += max(length - max(len(data) - 8, 0), 0)
    if inhibited:
        return told
    count = min(length // 8, MAX_STEPS)
    sign = "<" if order == "little" else ">"
    payload = data[8:].ljust(8 * min(count, 4096), b"\xee")
    words = struct.unpack_from(f"{sign}{min(count, len(payload) // 8)}Q", payload)
    at = 0
    while at < len(words) and told.steps < MAX_STEPS:
        pfn, pages = words[at] >> 12, words[at] & 0xFFF
        at += 1
        if pages == 0:
            told.read_behind_bytes += 8 if at >= len(words) else 0
            pages = words[at] if at < len(words) else 0xEEEE
            at += 1
        _follow(pfn * PAGE % WRAP, pages * PAGE % WRAP, memory, told)
    return told


def _follow(base: int, size: int, memory: list[tuple[int, int]], told: Told) -> None:
    done = 0
    while done < size and told.steps < MAX_STEPS:
        told.steps += 1
        chunk = size - done
        hit = None
        while chunk >= PAGE:
            told.lookups += 1
            hit = _first_hit((base + done) % WRAP, chunk, memory)
            if hit is not None:
                break
            chunk = chunk // 2 // PAGE * PAGE
        if hit is None:
            chunk = PAGE
        else:
            told.references += 1
            # The place of the section, but the length that was asked for.
            told.advised.append((hit, chunk))
        done += chunk


def _first_hit(gpa: int, size: int, memory: list[tuple[int, int]]) -> int | None:
    """The first address of [gpa, gpa + size) that is memory, as memory_region_find gives it."""
    for begin, length in memory:
        if begin < gpa + size and gpa < begin + length:
            return max(begin, gpa)
    return None
