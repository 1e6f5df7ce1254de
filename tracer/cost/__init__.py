"""Measures what one hit of each kind of probe costs on this machine."""
