"""Train a hypernetwork over a family, predict, polish: any Reynolds number. About three minutes."""

import matplotlib.pyplot as plt
import torch

import hyperlora_ext as hl
from hyperlora_ext.problems import kovasznay
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn import MLP

family, Re40, Re73 = kovasznay(), torch.tensor([40.0]), torch.tensor([73.0])
few, many = {"interior": 300, "boundary": 100}, {"interior": 1000, "boundary": 200}
base = MLP((2, 64, 64, 64, 64, 64, 3)).double()
LevenbergSchedule(few, many, start=0.25)(base, family.problem(Re40), seconds=90)

h = hl.HyperLoRA(base, family.space, rank=4)
tasks = hl.TaskProblem(family, 20, sizes={"interior": 24, "boundary": 8})  # new ones every time
LevenbergSchedule(every=10)(h, tasks, seconds=90)
v = h.pinn(Re73)  # milliseconds
solved = hl.solve(h, family, Re73, tolerance=1e-9, steps=5, sizes=few)
print(f"held-out loss {solved.predicted:.1e} predicted, {solved.loss:.1e} after {solved.steps}")

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), constrained_layout=True)
for axis, name, network in zip(axes, ("predicted", "polished"), (v, solved.model), strict=True):
    error = (network(family.grid) - family.reference(Re73))[:, 0].detach().abs()
    shown = axis.imshow(error.log10().view(101, 101).T, origin="lower", vmin=-8, vmax=0)
    axis.set_title(f"{name}: largest error {error.max():.0e}")
figure.colorbar(shown, label="log10 of the error of the first velocity")
figure.savefig("hyperlora_family.png")
