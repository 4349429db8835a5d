"""The package is described in pyproject.toml; this file is where the CUDA extension will be built."""

from setuptools import setup

setup()
