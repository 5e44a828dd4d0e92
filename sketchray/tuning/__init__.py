"""Sweeps: Optuna proposes configurations, Ray Tune runs them, ASHA stops those that lag.

dimensions space   what may be tried
study              what was tried: Optuna's storage, the only memory
search             between Ray Tune and the study
trial              one trial
pareto             accuracy beside speed
plan sweep         what is asked for; the driver
scoreboard page    what is seen of it, while it runs and at the end
"""

from sketchray.tuning.plan import SweepConfig, sweep_defaults
from sketchray.tuning.sweep import tune

__all__ = ["SweepConfig", "sweep_defaults", "tune"]
