"""`aerostat`, as it is without the dev extra: without pandas.

pyarrow imports pandas wherever it is installed, which adds 40 MiB to a recorder that has no use
for it.
"""

import sys
from importlib.machinery import ModuleSpec


class WithoutPandas:
    """Finds no pandas."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Refuse pandas; leave every other module to who comes next."""
        del path, target
        if name == "pandas":
            raise ImportError("left out")
        return None


if __name__ == "__main__":
    sys.meta_path.insert(0, WithoutPandas)
    from aerostat.cli import main

    sys.exit(main())
