"""What can go wrong with the lab's virtual machine, as exceptions a user can act on."""

from tracer.trace.errors import AerostatError


class LabError(AerostatError):
    """The lab's virtual machine, or something in it, failed."""


class AgentError(LabError):
    """The guest agent refused an operation, or could not carry it out."""


class ChannelClosedError(LabError):
    """The guest's end of the channel is gone."""


class GuestTimeoutError(LabError):
    """The guest did not answer in time."""


class VmDiedError(LabError):
    """QEMU ended, or the guest never came up; the reason holds the console's last lines."""
