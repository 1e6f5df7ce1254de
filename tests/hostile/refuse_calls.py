"""Run a program while the kernel refuses some calls: refuse_calls.py ERRNO WHAT PROGRAM ARGUMENT...

A seccomp filter, which needs no privilege, makes calls fail with ERRNO before the kernel looks at
them: with `discards` as WHAT madvise(MADV_DONTNEED), process_madvise and fallocate, with `willneed`
madvise(MADV_WILLNEED). It is inherited by every process that the program starts.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

CALLS = {"x86_64": (28, 285, 440), "aarch64": (233, 47, 440)}
"""Numbers of madvise, fallocate and process_madvise."""
ADVICE = {"discards": 4, "willneed": 3}
"""MADV_DONTNEED and MADV_WILLNEED."""
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD, EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, FAIL = 0x7FFF0000, 0x00050000


def program(number: int, what: str) -> bytes:
    """struct sock_filter: code, jump if true, jump if false, operand."""
    madvise, fallocate, vector = CALLS[platform.machine()]
    others = [(EQUAL, 4, 0, fallocate), (EQUAL, 3, 0, vector)]
    steps = [
        (LOAD, 0, 0, 0),  # seccomp_data.nr
        *(others if what == "discards" else []),
        (EQUAL, 0, 3, madvise),
        (LOAD, 0, 0, 32),  # low half of the third argument
        (EQUAL, 0, 1, ADVICE[what]),
        (RETURN, 0, 0, FAIL | number),
        (RETURN, 0, 0, ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def refuse(number: int, what: str) -> None:
    """Put the filter on this process and all that it becomes."""
    libc = ctypes.CDLL(None, use_errno=True)
    raw = ctypes.create_string_buffer(program(number, what))
    filtered = struct.pack("<HxxxxxxQ", len(raw.raw) // 8, ctypes.addressof(raw))
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.create_string_buffer(filtered), 0, 0),
    ):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse(getattr(errno, sys.argv[1]), sys.argv[2])
    os.execv(sys.argv[3], sys.argv[3:])
