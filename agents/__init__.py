"""Who turns the knobs: PPO, the Optuna tuner, the baselines and the statistics that compare them."""
