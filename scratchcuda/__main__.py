"""``scratchcuda`` and ``python -m scratchcuda``."""

import sys

from scratchcuda._build.library import BuildError


def main() -> None:
    """Run the command line, or say how to install it. The doctor comes without."""
    if sys.argv[1:] == ["doctor"] or (sys.argv[1:3] == ["doctor", "--json"] and len(sys.argv) == 4):
        from scratchcuda import doctor

        sys.exit(doctor.run(*sys.argv[3:]))
    try:
        from scratchcuda.cli import app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("typer", "rich", "matplotlib", "sklearn", "jinja2"):
            raise
        sys.exit(f"The command line needs {error.name}. Install scratchcuda with its extra: pip install '.[cli]'")
    try:
        app(prog_name="scratchcuda")
    except BuildError as error:  # a compiler's words about a kernel, say
        sys.exit(f"scratchcuda: {error}")


if __name__ == "__main__":
    main()
