"""Finds the VMs of this machine from /proc, and where in their VMM's memory the guest's lies."""
