"""Records VMs from their host: one trace for each."""
