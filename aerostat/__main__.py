"""Lets `python -m aerostat` be the command, where no script is installed."""

import sys

from aerostat.cli import main

sys.exit(main())
