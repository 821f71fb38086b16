"""`LevenbergMarquardt` is an optimizer of the core; the name stays importable from here."""

from kfac_pinn.optimizers.levenberg_marquardt import LevenbergMarquardt, Solver

__all__ = ["LevenbergMarquardt", "Solver"]
