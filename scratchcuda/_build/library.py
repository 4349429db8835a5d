"""A shared library as a list of compiler calls; built so that interruptions and rivals do no harm, and cached."""

import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).resolve().parents[1]
_JOB_BYTES = 2**30  # a compiler takes a quarter of it
_CGROUP = Path("/sys/fs/cgroup")


class BuildError(RuntimeError):
    """Why something cannot be built, and a command that cures it."""

    def __init__(self, cause: str, cure: str):
        between = "\n" if "\n" in cause else "; "
        super().__init__(f"{cause}{between}{cure}")
        self.cause, self.cure = cause, cure


class Library(NamedTuple):
    """The compiler calls that make one shared library.

    Attributes:
        name: of its files in the cache.
        title: what it is, to people.
        identity: what decides about the result besides the sources and the calls, which count without the folders of
            their paths: versions. So environments share what is alike.
        calls: for each source, which comes last, its call but for the output.
        link: the call that links, but for objects, libraries and output.
        libraries: what is linked after the objects.
        facts: to be written beside it, into a JSON file of its name.
    """

    name: str
    title: str
    identity: str
    calls: list[list[str]]
    link: list[str]
    libraries: list[str]
    facts: dict

    def made_of(self) -> str:
        """A digest that differs for other sources, calls or versions."""
        sources = (Path(call[-1]).read_bytes() for call in self.calls)
        return digest(self.identity, _plain(*self.calls, self.link, self.libraries), headers(), *sources)

    def cached(self) -> Path:
        """Where it lies in the cache once it is built."""
        return cache() / f"{self.name}-{self.made_of()}.so"

    def built(self) -> Path:
        """Where it lies in the cache; built first if it does not."""
        library = self.cached()
        try:
            if not self._is(library):
                self.make(cache() / self.name, library)
        except OSError as error:
            cure = "set SCRATCHCUDA_CACHE to a folder that can be written"
            raise BuildError(f"what is built cannot be kept in {cache()} ({error})", cure) from None
        return library

    def make(self, folder: Path, library: Path) -> None:
        """Build it, with a line on stderr that says so; of several processes that want it, one does.

        Objects are kept in the folder. Those that are there from before, of the same source and call, are used again:
        an edit compiles one file, or those that include it, and a build that was interrupted goes on where it ended.
        """
        import fcntl  # not on Windows, where nothing is built

        for place in (folder, library.parent):
            place.mkdir(parents=True, exist_ok=True)
        with open(folder / "lock", "w") as lock:  # the system's: a process that is killed leaves none behind
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"scratchcuda: waiting for another process that builds in {folder}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            if self._is(library):
                print(f"scratchcuda: {library} is there already", file=sys.stderr)
            else:
                self._compile(folder, library)

    def _is(self, library: Path) -> bool:
        """Whether this file is what would be built, and whole: a library that was cut off kills who loads it."""
        facts = facts_of(library)
        return facts is not None and facts.get("made_of") == self.made_of()

    def _compile(self, folder: Path, library: Path) -> None:
        def compiled(call: list[str]) -> Path:
            source = Path(call[-1])
            made_of = digest(self.identity, _plain(call), source.read_bytes(), headers(source))
            object_ = folder / f"{source.stem}-{made_of}.o"
            if not object_.exists():
                os.replace(_run([*call, "-c"], object_), object_)
            return object_

        begin = time.monotonic()
        print(f"scratchcuda: building {self.title} ...", end=" ", file=sys.stderr, flush=True)
        try:
            for part in [*folder.glob("*.part"), *library.parent.glob(f"{library.name}.*.part")]:
                part.unlink()  # of a build that was killed
            with ThreadPoolExecutor(jobs()) as pool:
                objects = list(pool.map(compiled, self.calls))
            linked = _run([*self.link, *map(str, objects), *self.libraries], library)
            library.unlink(missing_ok=True)  # the facts of one are never beside the other
            facts = self.facts | {"made_of": self.made_of(), "bytes": linked.stat().st_size}
            library.with_suffix(".json").write_text(json.dumps(facts, indent=2))
            os.replace(linked, library)
            for old in set(folder.glob("*.o")).difference(objects):
                old.unlink()
        except BaseException:
            print("failed", file=sys.stderr)
            raise
        print(f"{time.monotonic() - begin:.0f} s", file=sys.stderr)


def facts_of(library: Path) -> dict | None:
    """The facts of a library that was built, from the file beside it; None if either is not there as it was written."""
    try:
        facts = json.loads(library.with_suffix(".json").read_text())
        return facts if facts["bytes"] == library.stat().st_size else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def digest(*parts: str | bytes) -> str:
    whole = hashlib.sha256()
    for part in parts:
        whole.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return whole.hexdigest()[:16]


def _plain(*calls: list[str]) -> str:
    """Calls without the folders in which things happen to lie: -L/some/where/lib is -Llib."""
    return repr([[re.sub(r"^(-[A-Za-z]+)?/.*/", r"\1", word) for word in call] for call in calls])


def _run(call: list[str], output: Path) -> Path:
    """The output of a compiler, in a file that is still to be renamed: so it appears whole, or not at all."""
    part = output.with_name(f"{output.name}.{os.getpid()}.part")
    command = [*call, "-o", str(part)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        cure = "see the compiler's own words above"
        if "unsupported GNU version" in done.stderr:
            cure = "name an older one in CXX, as in CXX=g++-14"
        words = f"{done.stdout}{done.stderr}".rstrip()
        raise BuildError(f"{words}\n{shlex.join(command)} failed".lstrip(), cure)
    return part


def asked(name: str) -> bool:
    """Whether this variable of the environment says yes."""
    return os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off")


def csrc() -> Path:
    """The C++ sources: within the package where it is installed, beside it in a checkout."""
    within = PACKAGE / "csrc"
    return within if within.is_dir() else PACKAGE.parent / "csrc"


def headers(source: Path | None = None) -> bytes:
    """All headers among the sources, or those that this source includes, directly or not, by the names in its text."""
    texts = {path.name: path.read_bytes() for path in sorted(csrc().glob("*/*.*h"))}
    if source is None:
        return b"".join(texts.values())
    found: dict[str, bytes] = {}
    left = [source.read_bytes()]
    while left:
        names = re.findall(rb'#\s*include\s*[<"](?:.*/)?([^>"]+)', left.pop())
        new = {name: texts.pop(name) for name in map(bytes.decode, names) if name in texts}
        found |= new
        left += new.values()
    return b"".join(found[name] for name in sorted(found))


def cache() -> Path:
    """Where built libraries are kept: ``SCRATCHCUDA_CACHE``, or scratchcuda's folder in the user's cache."""
    if folder := os.environ.get("SCRATCHCUDA_CACHE"):
        return Path(folder).absolute()
    try:
        user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise BuildError("there is no home folder to keep builds in", "set SCRATCHCUDA_CACHE to a folder") from None
    return Path(user, "scratchcuda").absolute()


def jobs() -> int:
    """How many compilers run at once: MAX_JOBS, or one for each core that is ours and each GiB that is free."""
    if number := os.environ.get("MAX_JOBS"):
        if not number.isdecimal() or int(number) < 1:
            raise BuildError(f"MAX_JOBS is {number!r}, expected a positive integer", "unset MAX_JOBS")
        return int(number)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _free_bytes() // _JOB_BYTES))


def _free_bytes() -> int:
    """Memory that the machine, and the container around this process, have left."""
    free = 2**62
    try:
        free = 1024 * int(re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[1])  # type: ignore[index]
        limit = (_CGROUP / "memory.max").read_text()  # "max" if there is none
        free = min(free, int(limit) - int((_CGROUP / "memory.current").read_text()))
    except (OSError, TypeError, ValueError):
        pass  # not Linux, or no limit
    return free


def kernel_sources() -> list[Path]:
    return sorted((csrc() / "kernels").glob("*.cu"))


def op_sources() -> list[Path]:
    """The ops that CUDA and the emulator share."""
    return [path for path in sorted((csrc() / "ops").glob("*.cpp")) if path.stem != "module"]
