"""The package is described in pyproject.toml; this file is where the CUDA extension will be built."""

import sys

import setuptools

# With --no-build-isolation nobody checks build-system.requires, and an older setuptools fails beyond recognition.
if int(setuptools.__version__.partition(".")[0]) < 77:
    sys.exit(f"setuptools is {setuptools.__version__}, expected 77 or later: pip install --upgrade setuptools")

setuptools.setup()
