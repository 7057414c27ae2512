"""Train an adaptation policy: the same as `lepton train`."""

import sys

from lepton_rl.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
