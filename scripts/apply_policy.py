"""Adapt a trained network to a new domain; the same as `lepton adapt`."""

import sys

from lepton_rl.cli import main

if __name__ == "__main__":
    sys.exit(main(["adapt", *sys.argv[1:]]))
