"""Train a hypernetwork over a family, predict, polish: any Reynolds number. About three minutes."""

import torch

import hyperlora_ext as hl
from hyperlora_ext.plots import error_maps
from hyperlora_ext.setups import SETUPS

setup = SETUPS["kovasznay"]()  # the family, a base network, numbers of points
family, task = setup.family, torch.tensor([73.0])
h = hl.HyperLoRA(setup.base(seconds=90), family.space, rank=4)
hl.by_physics(h, family, setup.fresh_tasks, setup.hyper_train, setup.hyper_step, seconds=90)
v = h.pinn(task)  # milliseconds
solved = hl.solve(h, family, task, tolerance=1e-9, steps=5, sizes=setup.step)
print(f"held-out loss {solved.predicted:.1e} predicted, {solved.loss:.1e} after {solved.steps}")
error_maps(family, task, {"predicted": v, "polished": solved.model}).savefig("hyperlora_family.png")
