"""Loads BPF programs, attaches them, empties their rings, and gives up privileges."""
