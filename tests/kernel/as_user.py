"""Does something as an ordinary user with exactly the capabilities named, in a child process.

Also sent into the lab's guest as text, so it needs nothing but the standard library.
"""

import ctypes
import os
import signal
import struct
from collections.abc import Callable, Iterable

NOBODY = 65534
PR_SET_DUMPABLE, PR_SET_KEEPCAPS = 4, 8
PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 47, 2
VERSION_3 = 0x20080522
LONGEST_S = 60


def become_nobody(capabilities: Iterable[int]) -> None:
    """Change this process for good, and what it executes, as setpriv and a service's unit do."""
    libc = ctypes.CDLL(None, use_errno=True)
    held = [int(capability) for capability in capabilities]
    bits = sum(1 << capability for capability in held)
    assert libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) == 0
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    low, high = bits & 0xFFFFFFFF, bits >> 32
    sets = struct.pack("<IIIIII", low, low, low, high, high, high)
    if libc.capset(struct.pack("<Ii", VERSION_3, 0), sets):
        raise OSError(ctypes.get_errno(), "capset")
    for capability in held:
        assert libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, capability, 0, 0) == 0
    # As after an exec: else /proc/self would be root's.
    assert libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0) == 0


def failure(capabilities: Iterable[int], act: Callable[[], object]) -> str:
    """Do something in a child with these capabilities.

    Returns:
        What it failed with, as text; empty where it worked.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        text = "ended without a word"
        try:
            signal.alarm(LONGEST_S)
            become_nobody(capabilities)
            act()
            text = ""
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writer, text.encode() or b"\0")
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    return said.strip("\0") if said else "the child died"
