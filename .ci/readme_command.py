"""Prints the command that stands in README.md below ``<!-- command: NAME -->``, so that both cannot drift."""

import re
import sys
from pathlib import Path

text = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
found = re.findall(rf"<!-- command: {re.escape(sys.argv[1])} -->\s*```sh\n(.*?)```", text, re.DOTALL)
if len(found) != 1:
    sys.exit(f"README.md has {len(found)} commands named {sys.argv[1]!r}; expected one")
sys.stdout.write(found[0].strip() + "\n")
