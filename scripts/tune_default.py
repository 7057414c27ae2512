"""Find the tuned default over the training tasks; see `lepton_rl.agents.default_search`."""

import tyro

from lepton_rl.agents.default_search import DefaultSearchConfig, search_default

if __name__ == "__main__":
    print(search_default(tyro.cli(DefaultSearchConfig))["settings"])
