"""Families with their references: 1D Burgers, 2D coupled Burgers, Kovasznay flow."""

from hyperlora_ext.problems.coupled_burgers import burgers2d, in_front, step_function
from hyperlora_ext.problems.navier_stokes import kovasznay
from hyperlora_ext.problems.scalar_burgers import burgers1d, burgers1d_published
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
