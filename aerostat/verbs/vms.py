"""`aerostat vms`: the virtual machines of this host, and what can be recorded of each."""

import os
import re
from typing import TYPE_CHECKING, Any

import click

from aerostat.options import json_option, talk_options
from aerostat.output import emit_json, plain
from aerostat.progress import progress_on_stderr

if TYPE_CHECKING:
    from tracer.vms.recordable import Recordable

_LIMIT = (
    "without root, programs of other users are not read, and a program that links libkrun is not "
    "found by it"
)
_VM = (
    *("pid", "start_ticks", "kind", "manager", "name", "vm_id", "uuid", "memory_bytes", "vcpus"),
    *("accel", "container", "exe_deleted"),
)
_REGION = (
    *("name", "gpa", "hva", "length_bytes", "backing", "page_size_bytes", "file_offset_bytes"),
)


@click.command("vms")
@json_option
@talk_options
def command(as_json: bool, quiet: bool, verbose: bool) -> None:
    """List the virtual machines that run on this host, and what can be recorded of each.

    Finds QEMU (of libvirt, OpenStack, KubeVirt, Proxmox or plain), Firecracker, cloud-hypervisor,
    crosvm and programs on libkrun, also in containers. Nothing is attached. Without root it says
    what it could not read.

    \b
    Examples:
      aerostat vms
      aerostat vms --json
    """
    from tracer.vms.discover import find_vms
    from tracer.vms.recordable import look_at

    with progress_on_stderr(verbose=verbose, quiet=quiet) as progress:
        progress("look for VMs")
        found = look_at(find_vms())
    limits = [] if os.geteuid() == 0 else [_LIMIT]
    if as_json:
        select = _selections(found)
        documents = [_document(vm) | {"select": select[vm.vmm.pid]} for vm in found]
        emit_json({"vms": documents, "limits": limits})
        return
    draw(found)
    if not quiet:
        for limit in limits:
            click.echo(f"aerostat: {limit}", err=True)


def _document(found: "Recordable") -> dict[str, Any]:
    vmm = found.vmm
    document = {key: getattr(vmm, key) for key in _VM}
    document |= {"machine": vmm.machine or None, "exe": str(vmm.exe)}
    document |= {
        "runs_vm": found.runs_vm,
        "records": plain(found.records),
        "handlers": list(found.handlers),
        "memory_map": plain(found.memory_map),
        "regions": [{key: getattr(region, key) for key in _REGION} for region in found.regions],
        "reason": found.reason,
    }
    return document


def _selections(found: "list[Recordable]") -> dict[int, list[str]]:
    """Say for each pid which options of `aerostat record` pick that VM and no other."""
    names = [name for vm in found for name in (vm.vmm.name, vm.vmm.vm_id) if name is not None]
    plainly = re.compile(r"[\w/][\w./:@+-]*")
    return {
        vm.vmm.pid: ["--vm", vm.vmm.name]
        if vm.vmm.name and names.count(vm.vmm.name) == 1 and plainly.fullmatch(vm.vmm.name)
        else ["--pid", str(vm.vmm.pid)]
        for vm in found
    }


def draw(found: "list[Recordable]") -> None:
    """Draw one row per VM."""
    from aerostat import render

    if not found:
        render.say("No virtual machine runs here.")
        return
    select = _selections(found)
    columns = ["pid", "<name", "<VMM", "memory", "<UUID", "<records", "<map", "<pick it with"]
    rows = [
        (
            str(vm.vmm.pid),
            render.cell(vm.vmm.label),
            _vmm_words(vm),
            render.size(vm.vmm.memory_bytes),
            render.cell(vm.vmm.uuid),
            render.cell(plain(vm.records)),
            render.cell(plain(vm.memory_map)),
            " ".join(select[vm.vmm.pid]),
            vm.reason,
        )
        for vm in found
    ]
    render.draw("Virtual machines", (*columns, "<note"), rows, spare=("UUID", "map"))


def _vmm_words(found: "Recordable") -> str:
    vmm = found.vmm
    words = [vmm.kind, vmm.manager or ""]
    words.append("in a container" if vmm.container else "")
    words.append("program replaced" if vmm.exe_deleted else "")
    return ", ".join(word for word in words if word)
