"""The BPF C programs, the header of the records they emit, and the headers they compile with."""
