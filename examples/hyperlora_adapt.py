"""Adapt a pretrained PINN to a new task: Kovasznay flow from Re 40 to Re 60. About two minutes."""

import matplotlib.pyplot as plt
import torch

import hyperlora_ext as hl
from hyperlora_ext.problems import kovasznay
from hyperlora_ext.schedules import LevenbergSchedule
from kfac_pinn import MLP

family, Re40, Re60 = kovasznay(), torch.tensor([40.0]), torch.tensor([60.0])
train = LevenbergSchedule(
    {"interior": 300, "boundary": 100}, {"interior": 1000, "boundary": 200}, start=0.25
)
u = MLP((2, 64, 64, 64, 64, 64, 3)).double()
train(u, family.problem(Re40), seconds=90)
v = hl.adapt(u, rank=4, aimed=family.problem(Re60))  # u is untouched, its tensors are shared
train(v, family.problem(Re60), seconds=5)
print(family.errors(lambda task: v, Re60).summary())
hl.save(v, "re60.lora")  # the factors alone, 20 kB

figure, axes = plt.subplots(1, 2, figsize=(8, 3.4), constrained_layout=True)
for axis, name, network in zip(axes, ("W0 as it is", "LoRA, rank 4"), (u, v), strict=True):
    error = (network(family.grid) - family.reference(Re60))[:, 0].detach().abs()
    shown = axis.imshow(error.log10().view(101, 101).T, origin="lower", vmin=-8, vmax=0)
    axis.set_title(f"{name}: largest error {error.max():.0e}")
figure.colorbar(shown, label="log10 of the error of the first velocity")
figure.savefig("hyperlora_adapt.png")
