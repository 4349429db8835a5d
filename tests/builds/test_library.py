"""How a library is built and kept."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from scratchcuda import _build
from scratchcuda._build import library
from scratchcuda._build.library import BuildError, Library

pytestmark = pytest.mark.backends("tensor")


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
    first = tiny(bare).built()
    assert first == tiny(bare).built()
    assert library.facts_of(first).items() >= {"facts": 1, "bytes": first.stat().st_size}.items()
    assert re.fullmatch(r"scratchcuda: building the tiny one \.\.\. \d+ s\n", capfd.readouterr().err)
    others = [tiny(bare, identity="other versions").built(), tiny(bare, "int other;").built()]
    others += [
        tiny(bare)._replace(libraries=["-lm"]).built(),
        tiny(bare)._replace(link=["g++", "-shared", "-s"]).built(),
    ]
    others += [tiny(bare)._replace(calls=[["g++", "-Os", "-fPIC", tiny(bare).calls[0][-1]]]).built()]
    (bare / "another.h").touch()
    monkeypatch.setattr(library, "headers", lambda: [bare / "another.h"])
    assert len({first, *others, tiny(bare).built()}) == 7


def test_what_an_edit_concerns_is_compiled(bare, monkeypatch):
    """Or all that it may concern, where ninja cannot know; in a folder whose name holds what others read as signs."""
    folder = bare / "of $x: a #ü"
    folder.mkdir()
    header, first, second = (folder / name for name in ("a #header.h", "a.cpp", "b.cpp"))
    header.write_text("#define ANSWER 1")
    first.write_text('#include "a #header.h"\nextern "C" int answer() { return ANSWER; }')
    second.write_text("int second;")
    monkeypatch.setenv("SCRATCHCUDA_CACHE", str(folder))
    monkeypatch.setattr(library, "headers", lambda: [header])
    recipe = tiny(bare)._replace(calls=[["g++", "-fPIC", str(source)] for source in (first, second)])

    def compiled(recipe):
        begin = time.time_ns()
        answer = ctypes.CDLL(recipe.built()).answer()
        time.sleep(0.02)  # the times of files are coarse, and an edit is later than this
        return {path.name[-8:] for path in folder.glob("tiny/*.o") if path.stat().st_mtime_ns > begin}, answer

    a, b = {"-a.cpp.o"}, {"-b.cpp.o"}
    assert compiled(recipe) == (a | b, 1)
    header.write_text("#define ANSWER 2")
    assert compiled(recipe) == (a, 2)
    header.write_text("#define ANSWER 3")
    os.utime(header, (1, 1))  # as cp -p leaves it, and tar
    assert compiled(recipe) == (a | b, 3)
    recipe = recipe._replace(identity="other versions")
    assert compiled(recipe) == (a | b, 3)
    recipe.calls[1].insert(1, "-Os")
    assert compiled(recipe) == (b, 3)
    (folder / "tiny/digests.json").write_text("half of it")
    second.write_text("int edited;")
    assert compiled(recipe) == (a | b, 3)


def test_a_failed_build_goes_on(bare, monkeypatch):
    """What was compiled whole is not compiled again; what was not is removed. The first failure is told."""
    recipe = tiny(bare)
    broken = [bare / name for name in ("second.cpp", "third.cpp")]
    for source in broken:
        source.write_text("#error broken on purpose")
        recipe.calls.append(["g++", "-fPIC", str(source)])
    for name, value in {"MAX_JOBS": "1", "NINJA_STATUS": "%none", "CLICOLOR_FORCE": "1"}.items():
        monkeypatch.setenv(name, value)
    words = r"^\S*second.cpp:.*broken on purpose(?s:.*)\ng\+\+ -fPIC .*second.cpp.o' failed\nsee the"
    with pytest.raises(BuildError, match=words) as caught:
        recipe.built()
    assert not re.search("third|ninja|\033", str(caught.value))
    (compiled,) = (library.cache() / "tiny").glob("*.o")
    for source in broken:
        source.write_text(f"int {source.stem};")
    left = recipe.cached().with_name(f"{recipe.cached().name}.123.part")
    left.write_text("half of it")
    before = compiled.stat().st_mtime_ns
    assert recipe.built().exists()
    assert compiled.stat().st_mtime_ns == before
    assert not left.exists()


@pytest.mark.parametrize(("ending", "ran"), [("SIGINT", "begin begin end"), ("SIGKILL", "begin end begin end")])
def test_of_two_processes_one_builds(ending, ran, bare):
    """The other waits, also for the compiler of one that was killed; one that is interrupted ends its compiler."""
    source = bare / "slow.cpp"
    source.write_text("int slow;")
    script = bare / "build.py"
    compiler = bare / "slow g++"
    # Time for what happens meanwhile, on a busy machine too.
    compiler.write_text(f'#!/bin/sh\ncd "{bare}"; echo begin >> log; sleep 2; g++ "$@" && echo end >> log\n')
    compiler.chmod(0o755)
    calls, link = [[str(compiler), "-fPIC", str(source)]], ["g++", "-shared"]
    recipe = Library("tiny", "the tiny one", "", calls, link, [], {})
    place = f"import sys; sys.path.insert(0, {str(library.PACKAGE)!r})\n"  # as setup.py does, which needs no torch
    place += "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # which may be ignored here
    script.write_text(f"{place}from _build.library import Library\nLibrary{tuple(recipe)!r}.built()\n")
    start = lambda: subprocess.Popen([sys.executable, script], stderr=subprocess.PIPE, text=True)  # noqa: E731
    (bare / "log").touch()
    ended = start()
    while not (bare / "log").read_text():
        assert ended.poll() is None, ended.stderr.read()
    both = [start(), start()]
    ended.send_signal(signal.Signals[ending])
    told = "".join(process.communicate(timeout=60)[1] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert (bare / "log").read_text().split() == ran.split()  # by the one that ended, and by one of the others
    assert told.count("waiting for another process that builds in") in (1, 2)
    assert ended.wait() == -signal.Signals[ending]


@pytest.mark.parametrize("place", [__file__, "/proc/scratchcuda"])
def test_a_cache_that_cannot_be_written_is_named(place, bare, monkeypatch):
    monkeypatch.setenv("SCRATCHCUDA_CACHE", place)
    cure = "set SCRATCHCUDA_CACHE to a folder that can be written"
    with pytest.raises(BuildError, match=rf"what is built cannot be kept in {place} \(.*\); {cure}"):
        tiny(bare).built()


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
