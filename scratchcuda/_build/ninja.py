"""Calls of compilers, run by ninja: those alone whose source, headers, words or versions are others than before."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import IO, NamedTuple

from . import toolchain
from .toolchain import BuildError


class Step(NamedTuple):
    """A call, and the files that it reads and writes, but for headers, of which it may write a list into output.d."""

    call: list[str]
    inputs: list[Path]
    output: Path


def run(steps: list[Step], folder: Path, jobs: int, versions: str, files: dict[str, str], lock: IO[str]) -> None:
    """Run what is not up to date.

    Args:
        folder: for what ninja remembers.
        jobs: how many calls may run at once.
        versions: a digest of what decides about the outputs besides files and calls.
        files: of all sources and headers their digests.
        lock: a file that stays open as long as a call runs, whatever happens to this process.

    Raises BuildError, with the words of the first call that failed, or OSError if ninja cannot work in the folder.
    """
    program = toolchain.ninja()
    _distrust_times(folder, files)
    build = folder / "build.ninja"
    build.write_bytes(os.fsencode(_written(steps, folder, versions)))
    process = subprocess.Popen(
        [program, "-f", build, "-j", str(jobs)],
        env=os.environ | {"NINJA_STATUS": "", "CLICOLOR_FORCE": "0"},  # or else as the user likes to see it
        pass_fds=[lock.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    with process:
        try:
            told, _ = process.communicate()
        except BaseException:
            process.terminate()  # it ends the calls, and removes what they have begun to write
            raise
    if process.returncode:
        raise _error(told, versions)


def _written(steps: list[Step], folder: Path, versions: str) -> str:
    """The file for ninja. Paths stand in variables, since in other places there is no escape for some characters."""
    paths = [path for step in steps for path in (*step.inputs, step.output)]
    names = {path: f"path{i}" for i, path in enumerate(paths)}
    lines = [f"{name} = {_escaped(path)}" for path, name in ({folder: "builddir"} | names).items()]
    # A call whose words have changed runs again; so these tell of what ninja does not see, in a comment for the shell.
    lines += ["rule call", f"  command = $call # {versions}", f"  description = {_ended(versions)}"]
    lines += ["  deps = gcc", "  depfile = $out.d"]
    for step in steps:
        inputs = " ".join(f"${names[path]}" for path in step.inputs)
        lines += [f"build ${names[step.output]}: call {inputs}", f"  call = {_escaped(shlex.join(step.call))}"]
    return "\n".join([*lines, ""])


def _escaped(value: object) -> str:
    return str(value).replace("$", "$$")


def _ended(versions: str) -> str:
    """The line that ninja writes when a call has ended, before what that has told."""
    return f"ended {versions}"


def _distrust_times(folder: Path, files: dict[str, str]) -> None:
    """ninja compares times: it forgets all that it has built if a file has changed and is no newer than that."""
    log, seen = folder / ".ninja_log", folder / "digests.json"
    try:
        before, built = json.loads(seen.read_text()), log.stat().st_mtime_ns
    except (OSError, ValueError):
        before, built = {}, 2**63
    if any(before.get(path) != now and os.stat(path).st_mtime_ns <= built for path, now in files.items()):
        log.unlink(missing_ok=True)
    seen.write_text(json.dumps(files))


def _error(told: str, versions: str) -> Exception:
    calls = told.split(f"{_ended(versions)}\n")
    failed = [call for call in calls if call.startswith("FAILED: ")]
    if not failed:
        return OSError(calls[-1].strip() or "ninja was killed")
    _, command, words = failed[0].split("\n", 2)
    words = words.removesuffix("ninja: build stopped: subcommand failed.\n").rstrip()
    cure = "see the compiler's own words above"
    if "unsupported GNU version" in words:
        cure = "name an older one in CXX, as in CXX=g++-14"
    return BuildError(f"{words}\n{command.removesuffix(f' # {versions}')} failed".lstrip(), cure)
