"""The coordinator's process: `python -m fedfactory.coordinator HOME`."""

import sys

from fedfactory.coordinator.daemon import main

sys.exit(main(sys.argv[1:]))
