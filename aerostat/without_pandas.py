"""Keeps pandas out of a process that stays on.

pyarrow imports pandas for the first array it makes, wherever pandas is installed, as it is beside
notebooks. That is 25 MiB that a recorder has no use for.
"""

import sys
from importlib.machinery import ModuleSpec


class _NoPandas:
    """A finder that says there is no pandas, and leaves every other module to those after it."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Refuse pandas."""
        del path, target
        if name == "pandas":
            raise ModuleNotFoundError("a recorder imports no pandas", name=name)
        return None


def leave_pandas_out() -> None:
    """Let nothing import pandas from now on, in the whole process; what is imported stays."""
    if _NoPandas not in sys.meta_path:
        sys.meta_path.insert(0, _NoPandas)
