"""A shared library as a list of compiler calls; built so that interruptions and rivals do no harm, and cached."""

import hashlib
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import IO, NamedTuple

from . import ninja
from .toolchain import BuildError

PACKAGE = Path(__file__).resolve().parents[1]
_JOB_BYTES = 2**30  # a compiler takes a quarter of it
_CGROUP = Path("/sys/fs/cgroup")


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
        return digest(self.identity, _plain(*self.calls, self.link, self.libraries), *self._files().values())

    def _files(self) -> dict[str, str]:
        """Of all sources and headers their digests."""
        paths = [*(Path(call[-1]) for call in self.calls), *headers()]
        return {str(path): digest(path.read_bytes()) for path in paths}

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
        with open(folder / "lock", "w") as lock:  # the system's: it ends with the last process that has it open
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"scratchcuda: waiting for another process that builds in {folder}", file=sys.stderr)
                fcntl.flock(lock, fcntl.LOCK_EX)
            try:
                if self._is(library):
                    print(f"scratchcuda: {library} is there already", file=sys.stderr)
                else:
                    self._compile(folder, library, lock)
            finally:
                fcntl.flock(lock, fcntl.LOCK_UN)  # a compiler's server (sccache) may have it open for long

    def _is(self, library: Path) -> bool:
        """Whether this file is what would be built, and whole: a library that was cut off kills who loads it."""
        facts = facts_of(library)
        return facts is not None and facts.get("made_of") == self.made_of()

    def _compile(self, folder: Path, library: Path, lock: IO[str]) -> None:
        begin = time.monotonic()
        print(f"scratchcuda: building {self.title} ...", end=" ", file=sys.stderr, flush=True)
        try:
            for part in library.parent.glob(f"{library.name}.*.part"):
                part.unlink()  # of a build that was killed
            steps = []
            for call in self.calls:
                source = Path(call[-1])
                object_ = folder / f"{source.parent.name}-{source.name}.o"
                told = ["-c", "-MMD", "-MF", f"{object_}.d", "-o", str(object_)]
                steps.append(ninja.Step([*call, *told], [source], object_))
            objects = [step.output for step in steps]
            linked = library.with_name(f"{library.name}.{os.getpid()}.part")  # to be renamed: it appears whole, or not
            link = [*self.link, *map(str, objects), *self.libraries, "-o", str(linked)]
            steps.append(ninja.Step(link, objects, linked))
            ninja.run(steps, folder, jobs(), digest(self.identity), self._files(), lock)
            library.unlink(missing_ok=True)  # the facts of one are never beside the other
            facts = self.facts | {"made_of": self.made_of(), "bytes": linked.stat().st_size}
            library.with_suffix(".json").write_text(json.dumps(facts, indent=2))
            os.replace(linked, library)
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


def asked(name: str) -> bool:
    """Whether this variable of the environment says yes."""
    return os.environ.get(name, "").strip().lower() not in ("", "0", "false", "no", "off")


def csrc() -> Path:
    """The C++ sources: within the package where it is installed, beside it in a checkout."""
    within = PACKAGE / "csrc"
    return within if within.is_dir() else PACKAGE.parent / "csrc"


def headers() -> list[Path]:
    """All headers among the sources."""
    return sorted(csrc().glob("*/*.*h"))


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
