"""Recorded file trees of machines that cannot be had here: what /proc and /sys of each showed.

Each is the tree of a plain Debian host with the files that differ.
"""

from pathlib import Path

ALL = 0x1FFFFFFFFFF
ROOT_STATUS = "Name:\tpython3\nUid:\t0\t0\t0\t0\nCapEff:\t{:016x}\n"

PLAIN: dict[str, str] = {
    "proc/sys/kernel/osrelease": "6.1.0-37-amd64\n",
    "proc/sys/kernel/arch": "x86_64\n",
    "proc/sys/kernel/kptr_restrict": "0\n",
    "proc/sys/kernel/perf_event_paranoid": "3\n",
    "proc/sys/kernel/unprivileged_bpf_disabled": "2\n",
    "proc/self/status": ROOT_STATUS.format(ALL),
    "proc/self/uid_map": "         0          0 4294967295\n",
    "proc/self/limits": (
        "Limit                     Soft Limit           Hard Limit           Units     \n"
        "Max locked memory         1048576              1048576              bytes     \n"
    ),
    "sys/kernel/security/lockdown": "[none] integrity confidentiality\n",
    "sys/kernel/btf/vmlinux": "BTF",
    "sys/kernel/tracing/available_filter_functions": "__traceiter_initcall_level\n",
    "sys/kernel/tracing/events/syscalls/sys_enter_madvise/id": "740\n",
    "sys/kernel/tracing/events/syscalls/sys_exit_madvise/id": "739\n",
    "sys/bus/event_source/devices/kprobe/type": "6\n",
    "sys/bus/event_source/devices/tracepoint/type": "2\n",
    "sys/bus/event_source/devices/uprobe/type": "7\n",
}


def machine_tree(root: Path, changes: dict[str, str | None] | None = None) -> Path:
    """Lay out the plain tree with changes; None takes a file, or all below it, away."""
    tree = dict(PLAIN)
    for name, text in (changes or {}).items():
        if text is None:
            tree = {path: kept for path, kept in tree.items() if not path.startswith(name)}
        else:
            tree[name] = text
    for name, text in tree.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root
