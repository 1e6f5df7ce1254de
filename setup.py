"""Builds the C extensions; everything else about the package is in pyproject.toml."""

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CCompilerError, ExecError, PlatformError

REMEDY = """
aerostat: the C extension {name} could not be built.
  try:    install a C compiler, libc headers and Python's headers
          (Debian: apt-get install gcc libc6-dev python3-dev), then run the install again
"""
MODULES = ["replay/native/build_core.py:ffi", "tracer/engine/build_drain.py:ffi"]


class BuildNative(build_ext):
    """build_ext that says what is missing when there is no working compiler."""

    def build_extension(self, ext: Extension) -> None:
        """Build one, or stop with the remedy."""
        try:
            super().build_extension(ext)
        except (CCompilerError, ExecError, PlatformError) as error:
            raise SystemExit(f"{error}\n{REMEDY.format(name=ext.name)}") from error


setup(cffi_modules=MODULES, cmdclass={"build_ext": BuildNative})
