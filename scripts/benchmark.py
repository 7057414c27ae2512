"""Compare arms on held-out tasks: the same as `lepton benchmark`."""

import sys

from lepton_rl.cli import main

if __name__ == "__main__":
    sys.exit(main(["benchmark", *sys.argv[1:]]))
