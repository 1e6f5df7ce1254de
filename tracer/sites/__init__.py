"""What can be probed, and where it is on this machine: catalogue, symbols, addresses."""
