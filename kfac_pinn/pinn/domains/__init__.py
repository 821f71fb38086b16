"""Where points are drawn: boxes, balls, polygons, what is combined of them, and time x space.

A domain hands out samplers: `interior`, `boundary`, faces. A `Sampler` fills a unit cube (with
`uniform`, `sobol` or `grid` points) and places it in the domain; called as
sampler(n, generator, dtype, device) it returns points of shape (n, d), drawn in that dtype.

samplers    how points are drawn
shapes      what a shape is, and `A | B`, `A & B`, `A - B`
solids      boxes and balls
polygon     polygons
time_space  an interval of time and a domain of space
"""

from kfac_pinn.pinn.domains.polygon import Polygon
from kfac_pinn.pinn.domains.samplers import (
    Device,
    Fill,
    Sampler,
    grid,
    sobol,
    together,
    uniform,
)
from kfac_pinn.pinn.domains.shapes import (
    Combination,
    Difference,
    Domain,
    Intersection,
    Shape,
    Union,
)
from kfac_pinn.pinn.domains.solids import Ball, Box
from kfac_pinn.pinn.domains.time_space import TimeSpace

__all__ = [
    "Ball",
    "Box",
    "Combination",
    "Device",
    "Difference",
    "Domain",
    "Fill",
    "Intersection",
    "Polygon",
    "Sampler",
    "Shape",
    "TimeSpace",
    "Union",
    "grid",
    "sobol",
    "together",
    "uniform",
]
