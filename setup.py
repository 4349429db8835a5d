"""The package is described in pyproject.toml; here the CUDA extension is added, where it can be built.

That is beside a CUDA build of torch, so without build isolation: ``pip install --no-build-isolation .``. Elsewhere the
package installs without it, and the first CUDA tensor builds it; ``FORCE_CUDA=1`` makes that an error.
"""

import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import setuptools
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

# With --no-build-isolation nobody checks build-system.requires, and an older setuptools fails beyond recognition.
if int(setuptools.__version__.partition(".")[0]) < 77:
    sys.exit(f"setuptools is {setuptools.__version__}, expected 77 or later; pip install 'setuptools>=77,<82'")

sys.path.insert(0, str(Path(__file__).resolve().parent / "scratchcuda"))
from _build import extension
from _build.library import BuildError, asked

del sys.path[0]


def without(error: Exception) -> None:
    """The package without its extension, unless that was asked for."""
    if find_spec("torch") is None:
        error = BuildError("an isolated build sees no torch", "pip install --no-build-isolation . builds beside it")
    if asked("FORCE_CUDA"):
        sys.exit(f"FORCE_CUDA is set, but {error}")
    print(f"scratchcuda is built without its CUDA kernels: {error}", file=sys.stderr)


class BuildFiles(build_py):
    def run(self) -> None:
        shutil.rmtree(Path(self.build_lib, "scratchcuda"), ignore_errors=True)  # else what was removed stays in wheels
        super().run()


class BuildKernels(build_ext):
    def run(self) -> None:
        try:
            recipe.make(Path(self.build_temp), Path(self.get_ext_fullpath("scratchcuda._C")))
        except (BuildError, OSError) as error:
            without(error)


arguments = {}
tag = ""
try:
    recipe = extension.recipe()
    arguments = {"ext_modules": [setuptools.Extension("scratchcuda._C", [])]}
    if "sdist" not in sys.argv:
        # One wheel for each Python and each major version of CUDA: it serves all torch since the floor that has that.
        tag = f"+cu{recipe.facts['cuda'].partition('.')[0]}"
except BuildError as error:
    without(error)
commands = {"build_py": BuildFiles, "build_ext": BuildKernels}
setuptools.setup(cmdclass=commands, options={"egg_info": {"tag_build": tag}}, **arguments)
