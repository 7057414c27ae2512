"""Optuna over the policy's knobs and ranges: cold and from the tuned default, static and over a schedule."""

from lepton_rl.agents.tuner import OptunaTuner

_TPE = "Bergstra et al. 2011, Algorithms for hyper-parameter optimization; Akiba et al. 2019, Optuna"
_HYPERBAND = "Li et al. 2018, Hyperband; Falkner et al. 2018, BOHB"
_GP = "Snoek et al. 2012, Practical Bayesian optimization of machine learning algorithms"
_RANDOM = "Bergstra and Bengio 2012, Random search for hyper-parameter optimization"


def _variants(name: str, source: str, **words: object) -> list[OptunaTuner]:
    return [
        OptunaTuner(
            name=name + "-schedule" * schedule + "-warm" * warm,
            source=source,
            schedule=schedule,
            warm=warm,
            **words,  # type: ignore[arg-type]
        )
        for schedule in (False, True)
        for warm in (False, True)
    ]


ARMS = (
    *_variants("tpe", _TPE, sampler="tpe"),
    *_variants("random-search", _RANDOM, sampler="random"),
    *_variants("tpe-hyperband", _HYPERBAND, sampler="tpe", hyperband=True),
    *_variants("gp", _GP, sampler="gp"),
)
