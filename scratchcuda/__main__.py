"""``scratchcuda`` and ``python -m scratchcuda``."""

import argparse
import sys

from scratchcuda._build.library import BuildError

EXTRA = ("typer", "rich", "matplotlib", "sklearn", "jinja2")


def main() -> None:
    """Run the command line, or say how to install it. The doctor comes without."""
    try:
        from scratchcuda.cli import app

        app(prog_name="scratchcuda")
    except ModuleNotFoundError as error:  # now, or where a command needs it
        name = (error.name or "").partition(".")[0]
        if name not in EXTRA:
            raise
        if sys.argv[1:2] == ["doctor"]:
            sys.exit(_doctor(sys.argv[2:]))
        sys.exit(f"The command line needs {name}. Install scratchcuda with its extra: pip install '.[cli]'")
    except BuildError as error:  # a compiler's words about a kernel, say
        sys.exit(f"scratchcuda: {error}")


def _doctor(arguments: list[str]) -> int:
    from scratchcuda import doctor

    parser = argparse.ArgumentParser("scratchcuda doctor", description="Say what is here to build and run with.")
    parser.add_argument("--json", metavar="FILE", help="write everything into this JSON file; - is the output")
    return doctor.run(parser.parse_args(arguments).json)


if __name__ == "__main__":
    main()
