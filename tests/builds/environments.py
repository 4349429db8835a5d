"""Virtual environments that tests install into."""

import json
import os
import subprocess
import sys
from pathlib import Path

from scratchcuda import doctor

SITE = f"lib/python3.{sys.version_info.minor}/site-packages"


class Environment:
    """A fresh virtual environment."""

    def __init__(self, folder, base=None):
        self.folder, self.variables = folder, {}
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        if base:
            (self.site / "base.pth").write_text(f"{Path(base).resolve() / SITE}\n")

    @property
    def site(self):
        return self.folder / SITE

    def hide(self, place):
        """Nothing exists there, to os.path.exists, by which toolkits are looked for."""
        (self.site / "sitecustomize.py").write_text(
            "import os\nexists = os.path.exists\n"
            f"os.path.exists = lambda path: not str(path).startswith({place!r}) and exists(path)\n"
        )

    def command(self, *arguments, cwd=None, **variables):
        """Its Python's: the arguments of subprocess.run. It finds no nvcc on PATH."""
        inherited = {name: value for name, value in os.environ.items() if name not in (*doctor.SETTINGS, "PYTHONPATH")}
        usual = {
            "PATH": "/usr/bin:/bin",
            "SCRATCHCUDA_CACHE": str(self.folder / "a cache"),
            "TORCH_CUDA_ARCH_LIST": "9.0",
        }
        return {
            "args": [self.folder / "bin/python", *arguments],
            "env": inherited | usual | self.variables | variables,
            "cwd": cwd or self.folder,  # not where the checkout would be imported
            "text": True,
        }

    def run(self, *arguments, status=0, **variables):
        """What it prints."""
        return self._output(self.command(*arguments, **variables), status)

    def _output(self, options, status):
        done = subprocess.run(**options, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
        assert done.returncode == status, done.stdout
        return done.stdout

    def pip(self, *arguments, status=0, **variables):
        options = self.command(**variables)
        command = [sys.executable, "-m", "pip", "--python", *options["args"], "--disable-pip-version-check", *arguments]
        return self._output(options | {"args": command}, status)

    def install(self, *arguments, **options):
        return self.pip("install", "-v", "--no-deps", *arguments, **options)

    def doctor(self, status=0, **variables):
        return json.loads(self.run("-m", "scratchcuda", "doctor", "--json", "-", status=status, **variables))
