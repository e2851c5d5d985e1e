"""The console script and ``python -m deploykit``: imports nothing at first, so that Ctrl-C is met at any moment."""

from __future__ import annotations

import sys

__all__ = ["entry_point"]


def entry_point() -> None:
    """Runs the command line and ends the process with its exit code."""
    try:
        from deploykit.cli import main

        code = main()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was complete stays\n")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    entry_point()
