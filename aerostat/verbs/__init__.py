"""The verbs, one file each; aerostat.cli imports one when it is asked for."""
