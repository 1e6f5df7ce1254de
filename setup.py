"""Builds the C extension; everything else about the package is in pyproject.toml."""

from setuptools import setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

REMEDY = """
aerostat: the C extension replay.native._core could not be built.
  try:    install a C compiler, libc headers and Python's headers
          (Debian: apt-get install gcc libc6-dev python3-dev), then run the install again
"""


class BuildCore(build_ext):
    """build_ext that says what is missing when there is no working compiler."""

    def run(self) -> None:
        """Build, or stop with the remedy."""
        try:
            super().run()
        except (CCompilerError, ExecError, PlatformError) as error:
            raise SystemExit(f"{error}\n{REMEDY}") from error


setup(cffi_modules=["replay/native/build_core.py:ffi"], cmdclass={"build_ext": BuildCore})
