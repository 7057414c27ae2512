"""Optuna over the policy's knobs and ranges: TPE and random search, cold and from the tuned default."""

from lepton_rl.agents.tuner import OptunaTuner

_TPE = "Bergstra et al. 2011, Algorithms for hyper-parameter optimization; Akiba et al. 2019, Optuna"
_RANDOM = "Bergstra and Bengio 2012, Random search for hyper-parameter optimization"

ARMS = (
    OptunaTuner(name="tpe", source=_TPE, sampler="tpe"),
    OptunaTuner(name="tpe-warm", source=_TPE, sampler="tpe", warm=True),
    OptunaTuner(name="random-search", source=_RANDOM, sampler="random"),
    OptunaTuner(name="random-search-warm", source=_RANDOM, sampler="random", warm=True),
)
