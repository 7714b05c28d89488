"""`python -m bench.setup`: a venv of the bench's own, with Ray, for Flower's simulation."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
VENV = Path(__file__).parent / ".venv"


def main() -> None:
    """Install the project and `flwr[simulation]`, as constraints.txt pins them."""
    subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
    pip = (str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", "install")
    words = ("-c", "constraints.txt", "-e", ".", "flwr[simulation]")
    subprocess.run([*pip, *words], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
