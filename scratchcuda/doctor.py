"""``scratchcuda doctor``: what is here to run and build the kernels with, and what to type where something is missing.

It needs no extra, and builds nothing.
"""

import ctypes
import json
import os
import platform
import shutil
import sys
import tempfile
import textwrap
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

import scratchcuda
from scratchcuda._build import extension, toolchain
from scratchcuda._build.library import BuildError, Library, asked, cache, facts_of, jobs
from scratchcuda.ops import _backend

#: Of the environment, what decides about builds and backends.
SETTINGS = (
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "FORCE_CUDA",
    "MAX_JOBS",
    "SCRATCHCUDA_BACKEND",
    "SCRATCHCUDA_CACHE",
    "SCRATCHCUDA_NO_CUDA",
    "TORCH_CUDA_ARCH_LIST",
    "XDG_CACHE_HOME",
)
#: Columns before a value.
NAME_WIDTH = 14
TENSOR = "torch's tensor operations"


def run(file: str | None = None) -> int:
    """Print what is found, or write it into a JSON file, - for the output. The exit status is 1 if CUDA was asked for
    and cannot work, 2 if the file cannot be written."""
    found = examine()
    if file is None or file == "-":
        print(json.dumps(found, indent=2) if file else wrapped(text(found)))
    else:
        try:
            Path(file).write_text(json.dumps(found, indent=2) + "\n")
        except OSError as error:
            print(f"--json is {file!r}, expected a file that can be written ({error.strerror})", file=sys.stderr)
            return 2
    return int(found["asked_for_cuda"] and not found["cuda_works"])


def wrapped(lines: str) -> str:
    """At words on a terminal, the rest of a line below its value."""
    if not sys.stdout.isatty():
        return lines
    wrap = textwrap.TextWrapper(
        shutil.get_terminal_size().columns,
        subsequent_indent=" " * NAME_WIDTH,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return "\n".join(map(wrap.fill, lines.splitlines()))


def examine() -> dict[str, Any]:
    """Everything that the command prints, as values for JSON."""
    problems: list[dict[str, str]] = []

    def problem(cause: str, cure: str) -> str:
        if cause not in [one["cause"] for one in problems]:
            problems.append({"cause": cause, "cure": cure})
        return cause

    found: dict[str, Any] = {
        "scratchcuda": {"version": scratchcuda.__version__, "folder": str(Path(scratchcuda.__file__).parent)},
        "python": {"version": platform.python_version(), "executable": sys.executable},
        "torch": {"version": torch.__version__, "cuda": torch.version.cuda, "folder": str(Path(torch.__file__).parent)},
        "driver": driver(),
        "cards": cards(),
        "pci_cards": pci_cards(),
        "toolkits": [
            {"source": kit.source, "nvcc": str(kit.nvcc), "version": kit.version, "fault": kit.fault}
            for kit in toolchain.toolkits(torch.version.cuda)
        ],
        "host_compiler": host_compiler(),
        "builds": builds(),
        "cache": str(cache()),
        "settings": {name: os.environ[name] for name in SETTINGS if name in os.environ},
    }
    current = _backend.current
    no_card = card_problem(found, problem)
    wanted = found["driver"] or found["pci_cards"] or current == "kernels"
    works, kernels = kernel_state(problem if wanted else lambda cause, cure: cause)
    serves, why = "nothing" if current in ("kernels", "emulator") else TENSOR, f"the backend in use is {current!r}"
    if no_card:
        serves, why = "nothing", no_card
    elif current in ("auto", "kernels"):
        old = [error for i in range(len(found["cards"])) if (error := _backend.too_old(torch.device("cuda", i)))]
        if len(old) == len(found["cards"]):
            works, kernels = False, problem(old[0].cause, old[0].cure)
        serves, why = "the kernels" if works else serves, kernels
    found |= {
        "kernels": kernels,
        "cuda_tensors": {"served_by": serves, "why": why},
        "cpu_tensors": {
            "served_by": "the emulator" if current == "emulator" else TENSOR,
            "why": f"the backend in use is {current!r}",
        },
        "asked_for_cuda": current == "kernels",
        "cuda_works": serves == "the kernels",
        "problems": problems,
    }
    return found


def driver() -> dict[str, str | None] | None:
    """NVIDIA's driver: its version, and the latest version of CUDA that it supports."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    library.cuDriverGetVersion(ctypes.byref(number))
    release = Path("/sys/module/nvidia/version")
    return {
        "version": release.read_text().strip() if release.exists() else None,
        "cuda": f"{number.value // 1000}.{number.value % 1000 // 10}",
    }


def cards() -> list[dict[str, Any]]:
    """The GPUs that torch sees."""
    found = []
    try:
        for i in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(i)
            found.append({"name": torch.cuda.get_device_name(i), "compute_capability": f"{major}.{minor}"})
    except RuntimeError:  # card_problem tells it
        return []
    return found


def pci_cards() -> list[str]:
    """Where the PCI bus has graphics cards of NVIDIA's, with or without a driver."""
    found = []
    with suppress(OSError):  # a container may mask /sys
        for device in sorted(Path("/sys/bus/pci/devices").glob("*")):
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
            if vendor == "0x10de" and kind.startswith("0x03"):
                found.append(device.name)
    return found


def card_problem(found: dict[str, Any], problem: Any) -> str:
    """Why there can be no CUDA tensors here; nothing if there can."""
    if found["torch"]["cuda"] is None:
        cause = f"torch {torch.__version__} is built without CUDA"
        wanted = found["driver"] or _backend.current == "kernels"
        return problem(cause, "pip install --force-reinstall torch") if wanted else cause
    if found["driver"] is None:
        if found["pci_cards"]:
            cure = "sudo apt install nvidia-driver (on Ubuntu: sudo ubuntu-drivers install; in a container: --gpus all)"
            return problem("there is an NVIDIA card, but no driver", cure)
        cause = "there is no NVIDIA card, and no driver"
        cure = "unset FORCE_CUDA SCRATCHCUDA_BACKEND (in a container on a machine with a card: --gpus all)"
        return problem(cause, cure) if _backend.current == "kernels" else cause
    supported, needed = found["driver"]["cuda"], found["torch"]["cuda"]
    if int(supported.split(".")[0]) < int(needed.split(".")[0]):
        cause = f"the driver supports CUDA {supported}, torch is built for {needed}"
        return problem(cause, "sudo apt install --only-upgrade nvidia-driver")
    if not found["cards"]:
        if "CUDA_VISIBLE_DEVICES" in os.environ:
            return problem("no GPU is visible", "unset CUDA_VISIBLE_DEVICES")
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as error:
            return problem(f"CUDA does not start ({error})", "nvidia-smi")
        return problem("no GPU is visible", "nvidia-smi")
    return ""


def host_compiler() -> dict[str, str]:
    try:
        found = toolchain.host_compiler()
    except BuildError as error:
        return {"fault": error.cause}
    return {"command": " ".join(found.words), "version": found.version}


def builds() -> list[dict[str, Any]]:
    """The one that came with the package, if there is one, and those of the cache, each with why it is not used."""
    installed = extension.installed()
    try:
        cached, lacking = extension.recipe().cached(), "it was built with another torch, compiler, Python or setting"
    except BuildError as error:
        cached, lacking = installed, error.cause
    found = []
    for library in [*([installed] if installed.exists() else []), *sorted(cache().glob("kernels-*.so"))]:
        try:
            fault = extension.misfit(library) or ("" if library in (installed, cached) else lacking)
        except BuildError as error:
            fault = error.cause
        found.append({"library": str(library), "facts": facts_of(library), "fault": fault})
    return found


def kernel_state(problem: Any) -> tuple[bool, str]:
    """Whether there are kernels for CUDA tensors, or would be with the first, and why."""
    try:
        library, aside = _backend.find(planned)
    except BuildError as error:
        meant = asked("SCRATCHCUDA_NO_CUDA") or torch.version.cuda is None  # card_problem tells of that
        return False, error.cause if meant else problem(error.cause, error.cure)
    found = f"{library} fits" if library else "the first CUDA tensor builds them, in about half a minute on two cores"
    return True, f"{aside}; {found}" if aside else found


def planned(recipe: Library) -> Path | None:
    """What is built by this recipe, if it is there; if not, nothing keeps it from being built. Or else BuildError."""
    if fault := extension.no_code(recipe.facts["architectures"]):
        raise BuildError(fault, "unset TORCH_CUDA_ARCH_LIST")
    library = recipe.cached()
    if facts_of(library):
        return library
    jobs()
    nearest = next(path for path in (cache(), *cache().parents) if path.exists())
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        cure = "set SCRATCHCUDA_CACHE to a folder that can be written"
        raise BuildError(f"{cache()} cannot be written ({error})", cure) from None
    return None


def text(found: dict[str, Any]) -> str:
    """The same for people."""
    torch_, told = found["torch"], found["driver"]
    lines = [
        ("scratchcuda", f"{found['scratchcuda']['version']} in {found['scratchcuda']['folder']}"),
        ("Python", f"{found['python']['version']}, {found['python']['executable']}"),
        ("torch", f"{torch_['version']}, " + (f"for CUDA {torch_['cuda']}" if torch_["cuda"] else "without CUDA")),
        ("driver", f"{told['version'] or ''} up to CUDA {told['cuda']}".strip() if told else "none"),
    ]
    lines += [("card", f"{card['name']}, compute capability {card['compute_capability']}") for card in found["cards"]]
    if not found["cards"]:
        lines.append(("card", f"PCI {', '.join(found['pci_cards'])}" if found["pci_cards"] else "none"))
    for kit in found["toolkits"]:
        fault = f"; not used: {kit['fault']}" if kit["fault"] else ""
        lines.append(("toolkit", f"CUDA {kit['version'] or '?'}, {kit['nvcc']} ({kit['source']}){fault}"))
    compiler = found["host_compiler"]
    lines.append(("host compiler", compiler.get("fault") or f"{compiler['version']} ({compiler['command']})"))
    for built in found["builds"]:
        facts, fault = built["facts"], f"; not used: {built['fault']}" if built["fault"] else ""
        of = f"{', '.join(facts['architectures'])}, CUDA {facts['cuda']}, torch {facts['torch']}" if facts else "?"
        lines.append(("build", f"{built['library']} ({of}){fault}"))
    lines.append(("cache", found["cache"]))
    lines += [("setting", f"{name}={value}") for name, value in found["settings"].items()]
    if found["kernels"] != found["cuda_tensors"]["why"]:
        lines.append(("kernels", found["kernels"]))
    for kind in ("CPU", "CUDA"):
        tensors = found[f"{kind.lower()}_tensors"]
        lines.append((f"{kind} tensors", f"served by {tensors['served_by']}: {tensors['why']}"))
    for one in found["problems"]:
        lines += [("problem", one["cause"]), ("  cure", one["cure"])]
    return "\n".join(f"{name:<{NAME_WIDTH}}{value}" for name, value in lines)
