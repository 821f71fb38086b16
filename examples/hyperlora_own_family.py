"""A family of one's own: u_xx + a u_yy + b e^u = 0 in a disk, u = 0 around; no solution known."""

import torch

import hyperlora_ext as hl
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn import MLP, Ball, HardConstraint, taylor

disk = Ball((0.0, 0.0))
space = hl.Intervals((hl.Interval(0.5, 2.0), hl.Interval(0.5, 2.0)))  # a and b


def equation(u, x, task):  # task: a and b at every point, (N, 2)
    value, _, (u_xx, u_yy) = taylor(u, x)
    return u_xx + task[:, :1] * u_yy + task[:, 1:] * torch.exp(value)


def edge(x):  # zero around
    return 1 - x[:, :1] * x[:, :1] - x[:, 1:] * x[:, 1:]


inside = hl.Condition(disk.interior, equation, 1000)
family = hl.Family("Bratu", disk, space, {"inside": inside})

torch.manual_seed(0)
network = HardConstraint(MLP((2, 16, 16, 1)), lambda x: 0 * x[:, :1], edge).double()
LevenbergSchedule()(network, family.problem(torch.tensor([1.0, 1.0])), steps=40)
h = hl.HyperLoRA(network, space, rank=4, hidden=(64, 64))
tasks = hl.TaskProblem(family, 20, sizes={"inside": 40})
LevenbergSchedule(every=3)(h, tasks, steps=60)
for task in space.sample(3, torch.Generator().manual_seed(1)):
    solved = hl.solve(h, family, task, tolerance=1e-8, steps=10)
    middle = float(solved.model(torch.zeros(1, 2).double()).detach())
    print(f"a = {task[0]:.2f}, b = {task[1]:.2f}: u = {middle:.6f} in the middle; held-out loss")
    print(f"  {solved.predicted:.0e}, {solved.loss:.0e} after {solved.steps} steps of polishing")
