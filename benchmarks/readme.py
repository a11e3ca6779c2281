"""Put the result files that README.md quotes between their markers.

python benchmarks/readme.py
"""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- begin (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """The text with every block replaced by the file that its marker names."""
    return BLOCK.sub(lambda m: f"{m[1]}{(ROOT / m[2]).read_text()}{m[3]}", text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
