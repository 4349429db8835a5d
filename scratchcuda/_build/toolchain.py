"""What is here to build with: torch, pybind11, ninja, a CUDA toolkit, a host compiler."""

import importlib.metadata
import importlib.util
import itertools
import os
import re
import runpy
import shlex
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

#: The ops use torch's stable interface as it is since this version, so that one build serves all later ones.
TORCH_FLOOR = (2, 11)
#: Compute capabilities: what the extension is built for where no card is visible; the first is the least it can be.
ARCHITECTURES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0))
STABLE_FLAGS = ["-DTORCH_TARGET_VERSION=0x{:02x}{:02x}000000000000".format(*TORCH_FLOOR)]
#: Where NVIDIA's own packages put the toolkit.
USUAL = Path("/usr/local/cuda")
#: What TORCH_CUDA_ARCH_LIST may say instead of numbers, as torch reads it.
_ARCHITECTURE_NAMES = {
    "Turing": "7.5+PTX",
    "Ampere": "8.0;8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell": "10.0;10.3;12.0;12.1+PTX",
}
#: Of a toolkit, beside cuda_runtime_api.h: PyPI has them in packages of their own.
_HEADERS = ("crt/host_config.h", "nv/target", "cuda_fp16.h")


class BuildError(RuntimeError):
    """Why something cannot be built, and a command that cures it."""

    def __init__(self, cause: str, cure: str):
        between = "\n" if "\n" in cause else "; "
        super().__init__(f"{cause}{between}{cure}")
        self.cause, self.cure = cause, cure


class Torch(NamedTuple):
    """The torch that is installed, known without importing it. ``cuda`` is None in a build without CUDA."""

    folder: Path
    version: str
    cuda: str | None


class Compiler(NamedTuple):
    """A host compiler: the words of its call (``ccache g++ -m64``), of these the program and its options."""

    words: list[str]
    program: str
    options: list[str]
    version: str

    def for_nvcc(self) -> list[str]:
        return ["-ccbin", self.program, *(word for option in self.options for word in ("-Xcompiler", option))]


class Toolkit(NamedTuple):
    """A CUDA toolkit: where it was found, and what is wrong with it, if anything.

    ``version`` is CUDA's, 13.0, and ``release`` that of nvcc, 13.0.88.
    """

    source: str
    nvcc: Path
    version: str = ""
    release: str = ""
    includes: tuple[Path, ...] = ()
    fault: str = ""


def text(*command: str | Path) -> str:
    """What a command prints; nothing if it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError:
        return ""
    return "" if done.returncode else done.stdout + done.stderr


def _package(name: str) -> Path:
    """The folder of a package, which is not imported."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise BuildError(f"{name} is not installed here", f"pip install {name}")
    return Path(spec.origin).parent


def torch() -> Torch:
    folder = _package("torch")
    known = runpy.run_path(str(folder / "version.py"))
    version = known["__version__"]
    if tuple(map(int, version.split(".")[:2])) < TORCH_FLOOR:
        floor = ".".join(map(str, TORCH_FLOOR))
        raise BuildError(f"torch is {version}, expected {floor} or later", f"pip install 'torch>={floor}'")
    return Torch(folder, version, known.get("cuda"))


def pybind11() -> tuple[Path, str]:
    """Its headers, and its version."""
    folder = _package("pybind11")
    return folder / "include", runpy.run_path(str(folder / "_version.py"))["__version__"]


def ninja() -> str:
    """PyPI's, wherever it lies (ninja.BIN_DIR is of this environment, not of one beneath it), or else that on PATH."""
    try:
        files = importlib.metadata.files("ninja") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for place in [*(str(file.locate()) for file in files if file.name == "ninja"), shutil.which("ninja")]:
        if place and text(place, "--version"):
            return place
    raise BuildError("ninja is not installed here", "pip install ninja")


def host_compiler() -> Compiler:
    """``CXX``, or g++."""
    told = os.environ.get("CXX", "").strip()
    cure = "unset CXX, or name one that does" if told else "sudo apt install g++"
    try:
        words = shlex.split(told or "g++")
    except ValueError as error:
        raise BuildError(f"CXX is {told!r} ({error})", cure) from None
    programs = list(itertools.takewhile(lambda word: not word.startswith("-"), words))
    version = text(*programs, "--version") if programs else ""
    if not version:
        raise BuildError(f"the host compiler {told or 'g++'} does not run", cure)
    return Compiler(words, programs[-1], words[len(programs) :], version.splitlines()[0])


def pypi_folders() -> list[Path]:
    """Where PyPI's packages put CUDA, nvidia/cu13 for example. There can be several: a toolkit may be installed for the
    user, or in an environment layered on another, apart from the runtime that came with torch."""
    spec = importlib.util.find_spec("nvidia")
    places = spec.submodule_search_locations if spec else None
    return [folder for place in places or () for folder in sorted(Path(place).glob("*")) if os.path.isdir(folder)]


def toolkits(cuda: str | None = None) -> list[Toolkit]:
    """All that are found, in the order in which they are preferred; each with its fault, if it has one.

    Args:
        cuda: the version of CUDA that they have to suit; None if any will do.
    """
    home, on_path = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    places = [("CUDA_HOME", Path(home, "bin/nvcc"))] if home else []
    places += [("PyPI", folder / "bin/nvcc") for folder in pypi_folders() if os.path.exists(folder / "bin/nvcc")]
    places += [("PATH", Path(on_path))] if on_path else []
    places += [(str(USUAL), USUAL / "bin/nvcc")] if os.path.exists(USUAL / "bin/nvcc") else []
    try:
        ccbin = host_compiler().for_nvcc()  # without one that it knows nvcc tells nothing
    except BuildError:
        ccbin = []
    found = [_toolkit(source, nvcc, ccbin, cuda) for source, nvcc in places]
    return [kit for i, kit in enumerate(found) if kit.nvcc not in [earlier.nvcc for earlier in found[:i]]]


def _toolkit(source: str, nvcc: Path, ccbin: list[str], cuda: str | None) -> Toolkit:
    """The toolkit of this nvcc, which may be a script that calls another one: that one is asked where it is."""
    release = re.search(r"release (\d+\.\d+), V([\d.]+)", text(nvcc, "--version"))
    dry = text(nvcc, "--dryrun", *ccbin, "-E", "-x", "cu", os.devnull)
    told = dict(re.findall(r"^#\$ (\w+)=(.*)", dry, re.MULTILINE))
    if not release or "TOP" not in told:
        return Toolkit(source, nvcc, fault="nvcc does not run" if os.path.exists(nvcc) else "there is no nvcc")
    top, version = Path(told["TOP"].strip()).resolve(), release[1]
    folders = [top, *top.glob("targets/*"), *(f for f in pypi_folders() if f.name == top.name)]
    includes = tuple(dict.fromkeys(path.resolve() for f in folders if os.path.isdir(path := f / "include")))
    real = top / "bin/nvcc"
    kit = Toolkit(source, real if os.path.exists(real) else nvcc, version, release[2], includes)
    headers = [path for folder in includes if os.path.exists(path := folder / "cuda_runtime_api.h")]
    if not headers:
        return kit._replace(fault="it holds no include/cuda_runtime_api.h")
    number = int(re.search(r"define CUDART_VERSION\s+(\d+)", headers[0].read_text())[1])  # type: ignore[index]
    if (of_headers := f"{number // 1000}.{number % 1000 // 10}") != version:
        return kit._replace(fault=f"its nvcc is of CUDA {version}, its headers in {headers[0].parent} of {of_headers}")
    parts = [Path(told.get("CICC_PATH", f"{top}/nvvm/bin").strip(), "cicc")]
    parts += [next((p for i in includes if os.path.exists(p := i / name)), top / "include" / name) for name in _HEADERS]
    if missing := [str(part) for part in parts if not os.path.exists(part)]:
        return kit._replace(fault=f"it holds no {missing[0]}")
    if cuda and version.split(".")[0] != cuda.split(".")[0]:
        return kit._replace(fault=f"it is of CUDA {version}, torch is built for {cuda}")
    return kit


def toolkit(cuda: str | None = None) -> Toolkit:
    """The first without a fault."""
    found = toolkits(cuda)
    for kit in found:
        if not kit.fault:
            return kit
    faults = "; ".join(f"{kit.nvcc} ({kit.source}): {kit.fault}" for kit in found)
    cause = f"no CUDA toolkit can be used: {faults}" if faults else "there is no CUDA toolkit"
    raise BuildError(cause, toolkit_cure(cuda))


def toolkit_cure(cuda: str | None) -> str:
    version = cuda or "13.0"
    if int(version.split(".")[0]) >= 13:
        return f"pip install 'cuda-toolkit[nvcc,cccl,crt,nvvm]=={version}.*'"
    # NVIDIA's packages on PyPI hold an nvcc since CUDA 13.
    return f"conda install -c nvidia cuda-toolkit={version}, or set CUDA_HOME to a toolkit of CUDA {version}"


def codes(nvcc: Path, cards: Iterable[tuple[int, int]] = ()) -> list[str]:
    """The machine codes (sm_90) and the portable ones (compute_90, that is PTX) to generate.

    ``TORCH_CUDA_ARCH_LIST`` names them, or else these cards, by their compute capabilities, or else all of
    :data:`ARCHITECTURES` that this nvcc knows, and PTX for what comes after. A card newer than nvcc takes PTX.
    """
    listed = map(int, re.findall(r"sm_(\d+)", text(nvcc, "--list-gpu-code")))
    least, *_ = (10 * major + minor for major, minor in ARCHITECTURES)
    known = [number for number in listed if number >= least]
    if not known:
        raise BuildError(f"{nvcc} does not tell which architectures it knows", "set CUDA_HOME to another toolkit")
    asked = os.environ.get("TORCH_CUDA_ARCH_LIST", "")
    for name, meaning in _ARCHITECTURE_NAMES.items():
        asked = re.sub(rf"\b{name}\b(\+PTX)?", meaning, asked)
    words = re.findall(r"[^;,\s]+", asked)
    if not words and cards:
        for card in sorted(set(cards)):
            number = 10 * card[0] + card[1]
            older = max((k for k in known if k <= number), default=min(known))
            words.append(f"{older // 10}.{older % 10}{'' if older == number else '+PTX'}")
    elif not words:
        words = [f"{major}.{minor}" for major, minor in ARCHITECTURES if 10 * major + minor in known]
        words[-1] += "+PTX"
    found = []
    for word in words:
        parts = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", word)
        if not parts or int(parts[1] + parts[2]) not in known:
            numbers = ", ".join(f"{number // 10}.{number % 10}" for number in sorted(known))
            cause = f"TORCH_CUDA_ARCH_LIST has {word!r}, expected some of {numbers}, each with +PTX or without"
            raise BuildError(cause, "unset TORCH_CUDA_ARCH_LIST")
        found += [f"{kind}_{parts[1]}{parts[2]}{parts[3]}" for kind in ("sm", "compute")[: 2 if parts[4] else 1]]
    return sorted(set(found), key=lambda code: (code[0] == "c", len(code), code))
