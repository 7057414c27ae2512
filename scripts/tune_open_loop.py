"""Find a tuned default per regime, or a tuned schedule; see `lepton_rl.agents.open_loop_search`."""

import tyro

from lepton_rl.agents.open_loop_search import OpenLoopSearchConfig, search_open_loop

if __name__ == "__main__":
    print(search_open_loop(tyro.cli(OpenLoopSearchConfig))["settings"])
