"""Boots a real virtual machine with a virtio balloon, to be traced."""
