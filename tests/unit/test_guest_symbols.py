"""A kprobe goes to the balloon driver's function or nowhere."""

import pytest

from tracer.errors import ProbeError
from tracer.sites.guest_probes import KernelSymbol, kernel_symbols, unambiguous

OWN = KernelSymbol(0x10, "virtio_balloon")
KERNEL = KernelSymbol(0x20, None)
OTHER = KernelSymbol(0x30, "vmw_balloon")


def test_a_name_that_is_there_once_is_used_as_it_is():
    assert unambiguous("tell_host", (OWN,)) == "tell_host"
    assert unambiguous("msleep", (KERNEL,)) == "msleep"
    assert unambiguous("nowhere", ()) == "nowhere"


def test_the_drivers_own_is_named_with_its_module():
    assert unambiguous("leak_balloon", (OTHER, OWN)) == "virtio_balloon:leak_balloon"


@pytest.mark.parametrize("places", [(KERNEL, OTHER), (OWN, OWN, KERNEL)])
def test_what_cannot_be_told_apart_is_refused_and_named(places):
    with pytest.raises(ProbeError, match="cannot tell which function remove_common") as refused:
        unambiguous("remove_common", places)
    for place in places:
        assert f"{place.address:#x} in {place.module or 'the kernel'}" in refused.value.reason
    assert "fentry" in refused.value.remedy


def test_this_kernels_symbols_are_found_in_one_pass():
    found = kernel_symbols()
    assert [place.module for place in found["msleep"]] == [None]
    assert "schedule" not in found
