"""Families with their references: 1D Burgers, 2D coupled Burgers, Kovasznay flow."""

from hyperlora_ext.problems.burgers1d import burgers1d, burgers1d_published
from hyperlora_ext.problems.burgers2d import burgers2d, in_front, step_function
from hyperlora_ext.problems.kovasznay import kovasznay
from hyperlora_ext.problems.spectral import Trajectory, solve_burgers

__all__ = [
    "Trajectory",
    "burgers1d",
    "burgers1d_published",
    "burgers2d",
    "in_front",
    "kovasznay",
    "solve_burgers",
    "step_function",
]
