"""Print one of the README's commands: the code block that follows its mark."""

import re
import sys
from pathlib import Path

readme = (Path(__file__).parent.parent / "README.md").read_text()
found = re.search(rf"<!-- command: {sys.argv[1]} -->\n```sh\n(.*?)```", readme, re.DOTALL)
if found is None:
    sys.exit(f"README.md has no command marked {sys.argv[1]!r}")
print(found.group(1))
