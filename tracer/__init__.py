"""Records what a memory balloon does, on the host and in the guest, into a trace bundle.

Importing this package imports neither BCC nor elftools; `tracer.engine.compiler` alone imports BCC
and `tracer.sites.elf` alone imports elftools, both when first needed.
"""
