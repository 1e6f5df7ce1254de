"""What works on this machine: every way to every probe predicted, then proven."""
