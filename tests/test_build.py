"""What is found to build with, what is built and how, and what is said where something is missing."""

import itertools
import json
import os
import re
import runpy
import subprocess
import sys
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import scratchcuda
from scratchcuda import _build, doctor
from scratchcuda._build import extension, library, toolchain
from scratchcuda._build.library import BuildError, Library
from scratchcuda.ops import _backend

pytestmark = pytest.mark.backends("tensor")

ROOT = Path(__file__).parent.parent
HEADERS = ("cuda_runtime_api.h", "crt/host_config.h", "cuda_fp16.h", "nv/target")


def make_toolkit(top, version="13.0", nvcc="13.0.88", of_headers=None, without=(), library="lib64"):
    """A folder that answers as a toolkit does."""
    script = f"""#!/bin/sh
[ "$1" = --version ] && echo "Cuda compilation tools, release {version}, V{nvcc}"
[ "$1" = --list-gpu-code ] && printf 'sm_70\\nsm_75\\nsm_80\\nsm_86\\nsm_90\\nsm_100\\n'
[ "$1 $2" = "--dryrun -ccbin" ] && echo "#$ TOP={top}/bin/.." >&2 && echo "#$ CICC_PATH={top}/bin/../nvvm/bin" >&2
exit 0
"""
    number = (of_headers or version + ".0").split(".")
    files = {"bin/nvcc": script, "nvvm/bin/cicc": "", f"{library}/libcudart.so.13": ""} | {
        f"include/{h}": "" for h in HEADERS
    }
    files["include/cuda_runtime_api.h"] = f"#define CUDART_VERSION  {number[0]}0{number[1]}0\n"
    for name, text in files.items():
        if name not in without:
            (top / name).parent.mkdir(parents=True, exist_ok=True)
            (top / name).write_text(text)
            (top / name).chmod(0o755)
    return top


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """No toolkit anywhere but in places that a test adds, no settings, a cache of its own."""
    for name in doctor.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "USUAL", tmp_path / "usual")
    monkeypatch.setattr(toolchain, "pypi_folders", list)
    monkeypatch.setenv("SCRATCHCUDA_CACHE", str(tmp_path / "a cache"))
    return tmp_path


@pytest.fixture
def cuda_torch(bare, monkeypatch):
    """As if torch were a CUDA build, with a whole toolkit."""
    monkeypatch.setattr(toolchain, "torch", lambda: toolchain.Torch(bare / "torch", "2.11.0+cu130", "13.0"))
    make_toolkit(bare / "usual")
    return bare


def test_toolkits_are_found_in_order_and_behind_wrappers(bare, monkeypatch):
    home, on_path, usual = (make_toolkit(bare / name) for name in ("home", "elsewhere", "usual"))
    pypi = bare / "site/nvidia/cu13"
    make_toolkit(pypi, without=["include/cuda_runtime_api.h"])  # which came with torch, into another folder
    runtime = bare / "other site/nvidia/cu13"
    make_toolkit(runtime, without=["bin/nvcc"])
    (bare / "bin").mkdir()
    (bare / "bin/nvcc").write_text(f'#!/bin/sh\nexec {on_path}/bin/nvcc "$@"\n')
    (bare / "bin/nvcc").chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("PATH", f"{bare / 'bin'}:/usr/bin:/bin")
    monkeypatch.setattr(toolchain, "pypi_folders", lambda: [pypi, runtime])
    found = toolchain.toolkits("13.2")  # another minor version is none
    assert [kit.nvcc for kit in found] == [top / "bin/nvcc" for top in (home, pypi, on_path, usual)]
    assert [kit.source for kit in found] == ["CUDA_HOME", "PyPI", "PATH", str(bare / "usual")]
    assert [kit.fault for kit in found] == [""] * 4
    assert found[1].includes == (pypi / "include", runtime / "include")
    monkeypatch.setenv("CUDA_HOME", str(on_path))
    assert len(toolchain.toolkits()) == 3  # the same one is not told twice


def test_pypi_folders_are_all_on_the_path(tmp_path, monkeypatch):
    places = [tmp_path / site / "nvidia/cu13" for site in ("a", "b")]
    for place in places:
        place.mkdir(parents=True)
        monkeypatch.syspath_prepend(place.parents[1])
    assert set(places) <= set(toolchain.pypi_folders())


@pytest.mark.parametrize(
    ("made", "fault"),
    [
        ({"without": ["bin/nvcc"]}, "there is no nvcc"),
        ({"version": "13"}, "nvcc does not run"),
        ({"without": ["include/cuda_runtime_api.h"]}, "holds no include/cuda_runtime_api.h"),
        ({"of_headers": "13.2"}, r"its nvcc is of CUDA 13.0, its headers in .*/include of 13.2"),
        ({"without": ["nvvm/bin/cicc"]}, "holds no .*/nvvm/bin/cicc"),
        ({"without": ["include/crt/host_config.h"]}, "holds no .*/include/crt/host_config.h"),
        ({"version": "12.8"}, "it is of CUDA 12.8, torch is built for 13.0"),
    ],
)
def test_a_toolkit_that_does_not_do_is_passed_by_and_named(made, fault, cuda_torch, monkeypatch):
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(cuda_torch / "home", **made)))
    assert toolchain.toolkit("13.0").nvcc == cuda_torch / "usual/bin/nvcc"
    monkeypatch.setattr(toolchain, "USUAL", cuda_torch / "nowhere")
    cure = r"; pip install 'cuda-toolkit\[nvcc,cccl,crt,nvvm\]==13.0.\*'"
    with pytest.raises(BuildError, match=rf"no CUDA toolkit can be used: .*/nvcc \(CUDA_HOME\): .*{fault}{cure}"):
        extension.recipe()


@pytest.mark.parametrize(
    ("asked", "cards", "expected"),
    [
        ("", [], "sm_75 sm_80 sm_86 sm_90 sm_100 compute_100"),  # 8.9 and 12.0 are unknown to this nvcc
        ("", [(9, 0)], "sm_90"),
        ("", [(9, 0), (8, 6), (9, 0)], "sm_86 sm_90"),
        ("", [(12, 0)], "sm_100 compute_100"),
        ("8.0;9.0+PTX", [(7, 5)], "sm_80 sm_90 compute_90"),
        ("8.0 9.0a", [], "sm_80 sm_90a"),
        ("Hopper", [], "sm_90 compute_90"),
        ("Turing;Hopper+PTX", [], "sm_75 sm_90 compute_75 compute_90"),
        ("7.0", [], "TORCH_CUDA_ARCH_LIST has '7.0', expected some of 7.5, 8.0, 8.6, 9.0, 10.0, each with"),
        ("sm_90", [], "TORCH_CUDA_ARCH_LIST has 'sm_90', expected some of 7.5, "),
    ],
)
def test_architectures(asked, cards, expected, bare, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", asked)
    nvcc = make_toolkit(bare / "home") / "bin/nvcc"
    if expected.startswith("sm_"):
        assert toolchain.codes(nvcc, cards) == expected.split()
    else:
        with pytest.raises(BuildError, match=re.escape(expected)):
            toolchain.codes(nvcc, cards)


def test_the_cards_are_those_that_the_kernels_can_run_on(monkeypatch):
    capabilities = [(9, 0), (6, 1), (8, 6), (9, 0)]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", capabilities.__getitem__)
    assert extension.cards() == [(8, 6), (9, 0)]


@pytest.mark.parametrize(
    ("asked", "cores", "free", "expected"),
    [
        ("", 8, 100, 8),
        ("", 64, 10, 10),
        ("", 4, 0, 1),
        ("3", 64, 1, 3),
        ("0", 1, 1, "'0', exp"),
        ("x", 1, 1, "'x', exp"),
    ],
)
def test_jobs_are_bounded_by_cores_and_memory(asked, cores, free, expected, monkeypatch):
    monkeypatch.setenv("MAX_JOBS", asked)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(cores))
    monkeypatch.setattr(library, "_free_bytes", lambda: free * 2**30)
    if isinstance(expected, int):
        assert library.jobs() == expected
    else:
        with pytest.raises(BuildError, match=f"MAX_JOBS is {expected}ected a positive integer; unset MAX_JOBS"):
            library.jobs()


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_free_memory_is_that_of_the_machine_and_of_the_container(tmp_path, monkeypatch):
    assert 2**20 < library._free_bytes() < 2**50
    monkeypatch.setattr(library, "_CGROUP", tmp_path)
    for limit, free in (("max", pytest.approx(library._free_bytes(), rel=0.5)), ("3000", 2000)):  # others use some, too
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("1000")
        assert library._free_bytes() == free


def tiny(folder, text='extern "C" int answer() { return 42; }', identity=""):
    """A library of one file."""
    source = folder / "a source.cpp"
    source.write_text(text)
    calls, link = [["g++", "-fPIC", str(source)]], ["g++", "-shared"]
    return Library("tiny", "the tiny one", identity, calls, link, [], {"facts": 1})


def test_a_library_is_built_once_and_anew_for_what_is_different(bare, monkeypatch, capfd):
    runs = []
    run = library._run
    monkeypatch.setattr(library, "_run", lambda call, output: runs.append(output.name) or run(call, output))
    first = tiny(bare).built()
    assert first == tiny(bare).built()
    assert library.facts_of(first).items() >= {"facts": 1, "bytes": first.stat().st_size}.items()
    assert re.fullmatch(r"scratchcuda: building the tiny one \.\.\. \d+ s\n", capfd.readouterr().err)
    assert len(runs) == 2  # compiled and linked
    others = [tiny(bare, identity="other versions").built(), tiny(bare, "int other;").built()]
    others += [
        tiny(bare)._replace(libraries=["-lm"]).built(),
        tiny(bare)._replace(link=["g++", "-shared", "-s"]).built(),
    ]
    others += [tiny(bare)._replace(calls=[["g++", "-Os", "-fPIC", tiny(bare).calls[0][-1]]]).built()]
    monkeypatch.setattr(library, "headers", lambda *source: b"other headers")
    assert len({first, *others, tiny(bare).built()}) == 7
    assert len(list(first.parent.glob("tiny/*.o"))) == 1  # the last one's


def test_an_edit_of_a_header_compiles_what_includes_it():
    """Of each kernel are known, as of the compiler, the headers that it includes."""
    command = ["g++", "-MM", "-x", "c++", f"-I{library.csrc()}/emulator", *library.kernel_sources()]
    rules = subprocess.run(command, capture_output=True, text=True, check=True).stdout.replace("\\\n", "")
    for rule in rules.splitlines():
        source, *included = map(Path, rule.split()[1:])
        assert all(path.read_bytes() in library.headers(source) for path in included), rule
        matmul = (library.csrc() / "kernels/matmul.cuh").read_bytes()
        assert (matmul in library.headers(source)) == (source.name == "dense.cu")


def test_an_interrupted_build_goes_on(bare, monkeypatch):
    """What was compiled whole is not compiled again; what was not is removed."""
    recipe = tiny(bare)
    second = bare / "second.cpp"
    second.write_text("#error broken on purpose")
    recipe.calls.append(["g++", "-fPIC", str(second)])
    monkeypatch.setenv("MAX_JOBS", "1")
    with pytest.raises(BuildError, match=r"^\S*second.cpp:.*broken on purpose(?s:.*)\ng\+\+ -fPIC .* failed\nsee the"):
        recipe.built()
    (compiled,) = (library.cache() / "tiny").glob("*.o")
    second.write_text("int second;")
    left = [compiled.with_suffix(".o.123.part"), recipe.cached().with_name(f"{recipe.cached().name}.123.part")]
    for part in left:
        part.write_text("half of it")
    before = compiled.stat().st_mtime_ns
    assert recipe.built().exists()
    assert compiled.stat().st_mtime_ns == before
    assert not any(part.exists() for part in left)


def test_of_two_processes_one_builds(bare):
    """The other waits, also for one that was killed."""
    source = bare / "slow.cpp"
    source.write_text("int slow;")
    script = bare / "build.py"
    compiler = bare / "slow g++"
    compiler.write_text(f'#!/bin/sh\necho compiled >> "{bare}/log"\nsleep 1\nexec g++ "$@"\n')
    compiler.chmod(0o755)
    calls, link = [[str(compiler), "-fPIC", str(source)]], ["g++", "-shared"]
    recipe = Library("tiny", "the tiny one", "", calls, link, [], {})
    place = f"import sys; sys.path.insert(0, {str(library.PACKAGE)!r})\n"  # as setup.py does, which needs no torch
    script.write_text(f"{place}from _build.library import Library\nLibrary{tuple(recipe)!r}.built()\n")
    start = lambda: subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)  # noqa: E731
    killed = start()
    while not (bare / "log").exists():
        assert killed.poll() is None, killed.stderr.read()
    both = [start(), start()]
    killed.kill()
    told = "".join(process.communicate(timeout=60)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert (bare / "log").read_text() == "compiled\n" * 2  # by the one that was killed, and by one of the others
    assert told.count("waiting for another process that builds in") in (1, 2)


@pytest.mark.parametrize("place", [__file__, "/proc/scratchcuda"])
def test_a_cache_that_cannot_be_written_is_named(place, bare, monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_CACHE", place)
    cure = "set SCRATCHCUDA_CACHE to a folder that can be written"
    with pytest.raises(BuildError, match=rf"what is built cannot be kept in {place} \(.*\); {cure}"):
        tiny(bare).built()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("CXX", "no-such-compiler", "the host compiler no-such-compiler does not run; unset CXX"),
        ("CXX", "false", "the host compiler false does not run; unset CXX"),
        ("CXX", "-m64", "the host compiler -m64 does not run; unset CXX"),
        ("CXX", "g++ '", r"CXX is \"g\+\+ '\" \(No closing quotation\); unset CXX"),
        ("PATH", "", r"the host compiler g\+\+ does not run; sudo apt install g\+\+"),
    ],
)
def test_a_missing_compiler_is_named(name, value, message, bare, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match=message):
        _build.emulator.build()


def test_the_first_error_of_a_kernel_is_shown_with_its_line(bare, monkeypatch):
    kernel = bare / "broken.cu"
    kernel.write_text("int first = oops;\nint second = oops;\n")
    monkeypatch.setenv("MAX_JOBS", "1")
    with pytest.raises(BuildError, match=r"broken.cu:1:13: error: .*oops") as caught:
        _build.emulator.build(extra=[kernel])
    assert "second" not in str(caught.value)


def test_an_unsupported_compiler_is_named(bare):
    compiler = bare / "nvcc"
    compiler.write_text("#!/bin/sh\necho '#error -- unsupported GNU version! gcc versions later than 15' >&2; exit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(BuildError, match=r"unsupported GNU version(?s:.*)\nname an older one in CXX"):
        tiny(bare)._replace(calls=[[str(compiler), str(bare / "a source.cpp")]]).built()


def test_sources_are_found_beside_the_package_and_within(tmp_path, monkeypatch):
    assert (library.csrc() / "kernels/dense.cu").exists()
    for place in (tmp_path / "csrc", tmp_path / "scratchcuda/csrc"):
        (place / "kernels").mkdir(parents=True)
        monkeypatch.setattr(library, "PACKAGE", tmp_path / "scratchcuda")
        assert library.csrc() == place


@pytest.mark.parametrize(
    ("version", "cuda", "message"),
    [
        ("2.13.0+cpu", None, r"torch 2.13.0\+cpu is built without CUDA; pip install --force-reinstall torch"),
        ("2.9.1", "12.8", "torch is 2.9.1, expected 2.11 or later; pip install 'torch>=2.11'"),
        (
            "2.11.0",
            "12.8",
            "no CUDA toolkit can be used: .* torch is built for 12.8; conda install -c nvidia cuda-toolkit",
        ),
        (None, None, "torch is not installed here; pip install torch$"),
    ],
)
def test_a_torch_that_does_not_do_is_named(version, cuda, message, bare, monkeypatch):
    make_toolkit(bare / "usual")
    (bare / "torch").mkdir()
    if version:
        (bare / "torch/__init__.py").touch()
    (bare / "torch/version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    find = lambda name: toolchain.importlib.machinery.PathFinder.find_spec(name, [str(bare)])  # noqa: E731
    monkeypatch.setattr(toolchain.importlib.util, "find_spec", find)
    with pytest.raises(BuildError, match=message):
        extension.recipe()


def test_a_truncated_library_is_built_anew(bare):
    built = tiny(bare).built()
    built.write_bytes(built.read_bytes()[:1000])
    assert library.facts_of(built) is None
    assert tiny(bare).built() == built
    assert library.facts_of(built)


def test_a_failed_link_vouches_for_nothing(bare, monkeypatch):
    """The facts of a build in place stay those of the library that is there."""
    binary = bare / "in place.so"
    tiny(bare).make(bare / "objects", binary)
    before = library.facts_of(binary)
    with pytest.raises(BuildError, match="failed\n"):
        tiny(bare, "int other;")._replace(libraries=["-lnone-of-this-name"]).make(bare / "objects", binary)
    assert library.facts_of(binary) == before
    monkeypatch.setattr(library.os, "replace", lambda part, whole: 1 / 0 if whole == binary else os.rename(part, whole))
    with pytest.raises(ZeroDivisionError):  # as if it were killed there
        tiny(bare, 'extern "C" int answer() { return 43; }').make(bare / "objects", binary)
    assert library.facts_of(binary) is None


def test_the_recipe(cuda_torch, monkeypatch):
    """For the visible cards, with the facts that decide about it."""
    monkeypatch.setattr(extension, "cards", lambda: [(8, 6), (9, 0)])
    recipe = extension.recipe()
    facts = {
        "version": scratchcuda.__version__,
        "torch": "2.11.0+cu130",
        "cuda": "13.0",
        "architectures": ["sm_86", "sm_90"],
    }
    assert recipe.facts.items() >= (facts | {"sources": extension.sources_digest()}).items()
    generated = [word for word in recipe.calls[0] if word.startswith("-gencode")]
    assert generated == ["-gencode=arch=compute_86,code=sm_86", "-gencode=arch=compute_90,code=sm_90"]
    assert recipe.libraries[-1] == str(cuda_torch / "usual/lib64/libcudart.so.13")
    monkeypatch.setattr(toolchain, "pypi_folders", lambda: [make_toolkit(cuda_torch / "pypi", library="lib")])
    assert extension.recipe().libraries[-1] == str(cuda_torch / "pypi/lib/libcudart.so.13")
    made, identities = {recipe.made_of()}, {recipe.identity}
    for place, name, changed in (
        (toolchain, "torch", lambda: toolchain.Torch(cuda_torch / "torch", "2.12.0", "13.0")),
        (toolchain, "host_compiler", lambda: toolchain.Compiler(["g++"], "g++", [], "another")),
        (extension.platform, "python_version", lambda: "3.99"),
        (extension, "cards", lambda: [(9, 0)]),
        (toolchain, "pypi_folders", lambda: [make_toolkit(cuda_torch / "pypi", nvcc="13.0.99", library="lib")]),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, changed)
            made.add(extension.recipe().made_of())
            identities.add(extension.recipe().identity)
    assert len(made) == 6
    assert len(identities) == 5  # the cards are in the calls


def test_a_compiler_of_several_words(cuda_torch, monkeypatch):
    ccache = cuda_torch / "cc ache"
    ccache.write_text('#!/bin/sh\n[ "$1" = --version ] && echo ccache 9 || exec "$@"\n')
    ccache.chmod(0o755)
    monkeypatch.setenv("CXX", f"'{ccache}' g++ -m64 -include time")  # time is a program, but not the compiler
    recipe = extension.recipe()
    assert recipe.facts["compiler"] == toolchain.text("g++", "--version").splitlines()[0]
    assert recipe.link[:3] == [str(ccache), "g++", "-m64"]
    assert recipe.calls[0][1:5] == ["-ccbin", "g++", "-Xcompiler", "-m64"]


@pytest.mark.parametrize(
    ("value", "yes"),
    [("", False), ("0", False), ("False", False), ("off", False), ("1", True), ("true", True), ("ON", True)],
)
def test_flags(value, yes, monkeypatch):
    monkeypatch.setenv("FORCE_CUDA", value)
    assert library.asked("FORCE_CUDA") == yes


def test_no_home(bare, monkeypatch):
    monkeypatch.delenv("SCRATCHCUDA_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 54321)
    with pytest.raises(
        BuildError, match="there is no home folder to keep builds in; set SCRATCHCUDA_CACHE to a folder"
    ):
        tiny(bare).built()


def test_cards_that_cannot_be_asked(monkeypatch):
    def busy(device):
        raise RuntimeError("all devices are busy")

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", busy)
    with pytest.raises(
        BuildError, match=r"torch does not tell which cards there are \(all devices are busy\); nvidia-smi"
    ):
        extension.cards()


def test_what_else_is_missing_is_named(cuda_torch, monkeypatch):
    monkeypatch.setattr(extension.sysconfig, "get_path", lambda name: "/nowhere")
    with pytest.raises(BuildError, match=rf"no /nowhere/Python.h; sudo apt install python3.{sys.version_info[1]}-dev"):
        extension.recipe()


def test_where_things_lie_does_not_matter(cuda_torch, monkeypatch):
    """One cache serves many environments; only the system's own headers keep their place among the compiler's."""
    first = extension.recipe()
    monkeypatch.setattr(toolchain, "USUAL", make_toolkit(cuda_torch / "elsewhere"))
    monkeypatch.setattr(toolchain, "torch", lambda: toolchain.Torch(cuda_torch / "moved/torch", "2.11.0+cu130", "13.0"))
    second = extension.recipe()
    assert first.calls != second.calls
    assert first.made_of() == second.made_of()
    system = toolchain.toolkit()._replace(includes=(Path("/usr/include"), cuda_torch))
    monkeypatch.setattr(toolchain, "toolkit", lambda cuda: system)
    call = extension.recipe().calls[0]
    assert [word for before, word in itertools.pairwise(call) if before == "-isystem"] == [str(cuda_torch)]


def test_the_runtime_is_named(cuda_torch):
    (cuda_torch / "usual/lib64/libcudart.so.13").unlink()
    with pytest.raises(BuildError, match=r"there is no libcudart.so.13; pip install 'cuda-toolkit\[cudart\]==13.0"):
        extension.recipe()


def test_no_cuda_means_none(cuda_torch, monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_NO_CUDA", "1")
    with pytest.raises(BuildError, match="SCRATCHCUDA_NO_CUDA is set; unset SCRATCHCUDA_NO_CUDA"):
        extension.recipe()


@pytest.mark.parametrize(
    ("variables", "backend"),
    [
        ({}, "auto"),
        ({"FORCE_CUDA": "1"}, "kernels"),
        ({"SCRATCHCUDA_NO_CUDA": "1"}, "tensor"),
        ({"FORCE_CUDA": "1", "SCRATCHCUDA_BACKEND": "emulator"}, "emulator"),
    ],
)
def test_the_backend_to_begin_with(variables, backend, bare, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runpy.run_path(_backend.__file__)["current"] == backend  # once more, as if it were imported first


FACTS = {
    "bytes": 0,
    "cuda": "13.0",
    "architectures": ["sm_80", "sm_90"],
    "torch": "2.11.0",
    "sources": extension.sources_digest(),
}


@pytest.mark.parametrize(
    ("facts", "cards", "fault"),
    [
        ({}, [(8, 6), (9, 0)], ""),
        ({"cuda": "13.4", "torch": "2.99.0"}, [], ""),  # the stable interface serves all torch with this CUDA
        ({"cuda": "12.8"}, [], "it was built for CUDA 12.8, torch has 13.0"),
        ({"sources": "others"}, [], "it was built from other sources than those in "),
        ({}, [(9, 0), (12, 0)], "it was built for sm_80, sm_90, not for compute capability 12.0"),
        ({"bytes": 1}, [], "it is cut off, or _C.json beside it is missing or damaged"),
        (None, [], "it is cut off, or _C.json beside it is missing or damaged"),
    ],
)
def test_a_build_that_does_not_fit_is_known_without_loading_it(facts, cards, fault, cuda_torch, monkeypatch):
    monkeypatch.setattr(extension, "cards", lambda: cards)
    binary = cuda_torch / "_C.so"
    assert extension.misfit(binary) == "it was not built"
    binary.touch()
    if facts is not None:
        binary.with_suffix(".json").write_text(json.dumps(FACTS | facts))
    found = extension.misfit(binary)
    assert found.startswith(fault)
    assert bool(found) == bool(fault)


@pytest.mark.parametrize(
    ("architecture", "card", "does"),
    [
        ("sm_90", (9, 0), True),
        ("sm_90", (8, 9), False),
        ("sm_80", (8, 9), True),
        ("sm_89", (8, 6), False),
        ("sm_90", (12, 0), False),
        ("compute_80", (12, 0), True),
        ("compute_120", (9, 0), False),
        ("sm_90a", (9, 0), True),
        ("compute_100a", (10, 3), False),
        ("sm_100f", (10, 3), True),
        ("compute_100f", (12, 0), False),
    ],
)
def test_where_code_runs(architecture, card, does):
    assert extension.runs(architecture, card) == does


@pytest.fixture
def first_use(cuda_torch, monkeypatch):
    """What a first CUDA tensor does, with builds that are written by the test, in their place and in the cache."""
    binary = cuda_torch / "_C.so"
    monkeypatch.setattr(extension, "installed", lambda: binary)
    monkeypatch.delitem(sys.modules, "scratchcuda._C", raising=False)

    def make(self, folder, built):
        built.parent.mkdir()
        built.write_text("")
        print(self.title)

    monkeypatch.setattr(Library, "make", make)
    _backend._missing.cache_clear()
    yield binary
    _backend._missing.cache_clear()


def test_builds_that_do_not_load_are_a_reason(first_use):
    """That which was installed, then that of the first use."""
    first_use.touch()
    first_use.with_suffix(".json").write_text(json.dumps(FACTS))
    fault = r"does not load beside torch .* \(.*\)"
    told = rf"/.*/_C.so is set aside: _C.so {fault}; kernels-\w+.so {fault}; set SCRATCHCUDA_CACHE to another folder"
    assert re.match(told, _backend.kernels_missing())


def test_threads_that_ask_at_once_load_one(first_use, monkeypatch):
    asked = []
    monkeypatch.setattr(extension, "misfit", lambda library: asked.append(library) or time.sleep(0.1) or "no")
    monkeypatch.setattr(_backend, "load", lambda path: "")
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda i: _backend.kernels_missing(), range(4))) == [""] * 4
    assert len(asked) == 1


def test_what_is_loaded_is_not_replaced(monkeypatch):
    monkeypatch.setitem(sys.modules, "scratchcuda._C", SimpleNamespace(__file__="/one/_C.so"))
    assert _backend.load(Path("/one/_C.so")) == ""
    assert _backend.load(Path("/another/_C.so")) == "/one/_C.so is loaded already"


def test_an_unfit_build_is_set_aside(first_use, capsys, monkeypatch):
    loaded = []
    monkeypatch.setattr(_backend, "load", lambda path: loaded.append(path) or "")
    first_use.touch()
    first_use.with_suffix(".json").write_text(json.dumps(FACTS | {"cuda": "12.8"}))
    assert _backend.kernels_missing() == ""
    assert loaded == [extension.recipe().cached()]
    aside = f"because {first_use} is set aside: it was built for CUDA 12.8, torch has 13.0\n"
    assert capsys.readouterr().out.endswith(aside)


def test_why_nothing_can_be_built_is_said(first_use, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    cause = "the host compiler false does not run; unset CXX, or name one that does"
    assert _backend.kernels_missing() == cause
    first_use.touch()
    _backend._missing.cache_clear()
    assert (
        _backend.kernels_missing()
        == f"{first_use} is set aside: it is cut off, or _C.json beside it is missing or damaged; {cause}"
    )


@pytest.mark.parametrize(
    ("architectures", "card", "reason"),
    [
        (["sm_80"], (8, 6), ""),
        (
            ["sm_80"],
            (9, 0),
            "the kernels were built for sm_80, not for a card, which has compute capability 9.0; unset T",
        ),
        (
            ["sm_80"],
            (6, 1),
            "the kernels do not run on a card, which has compute capability 6.1, less than 7.5; SCRATCHCUDA",
        ),
    ],
)
def test_a_card_that_the_kernels_do_not_run_on(architectures, card, reason, monkeypatch):
    class Module:
        build_facts = staticmethod(lambda: {"architectures": architectures})

    monkeypatch.setitem(sys.modules, "scratchcuda._C", Module)
    monkeypatch.setattr(scratchcuda, "_C", Module, raising=False)
    monkeypatch.setattr(_backend, "kernels_missing", lambda: "")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a card")
    found = _backend.kernels_unfit.__wrapped__(torch.device("cuda:0"))
    assert found.startswith(reason)
    assert bool(found) == bool(reason)


def test_what_is_told_in_several_places_agrees():
    described = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert described["dependencies"] == ["torch>={}.{}".format(*toolchain.TORCH_FLOOR)]
    assert described["optional-dependencies"]["cuda"][0].split(";")[0] in toolchain.toolkit_cure("13.0")
    told = (ROOT / "docs/install.md").read_text()
    assert [name for name in doctor.SETTINGS if f"`{name}" not in told] == []
    assert toolchain.STABLE_FLAGS == ["-DTORCH_TARGET_VERSION=0x020b000000000000"]
