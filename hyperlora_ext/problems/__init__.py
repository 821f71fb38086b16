"""Families with their references: Burgers in 1D and 2D, Kovasznay flow, transport, Helmholtz."""

from hyperlora_ext.problems.coupled_burgers import burgers2d, in_front, step_function
from hyperlora_ext.problems.navier_stokes import kovasznay
from hyperlora_ext.problems.scalar_burgers import (
    burgers1d,
    burgers1d_potential,
    burgers1d_published,
    reflection,
    slope,
)
from hyperlora_ext.problems.spectral import Trajectory, solve_burgers
from hyperlora_ext.problems.splitting import solve_transport
from hyperlora_ext.problems.transport_equation import convection, transport
from hyperlora_ext.problems.waves import helmholtz

__all__ = [
    "Trajectory",
    "burgers1d",
    "burgers1d_potential",
    "burgers1d_published",
    "burgers2d",
    "convection",
    "helmholtz",
    "in_front",
    "kovasznay",
    "reflection",
    "slope",
    "solve_burgers",
    "solve_transport",
    "step_function",
    "transport",
]
