"""Adapt a pretrained PINN to a new task: Kovasznay flow from Re 40 to Re 60. About two minutes."""

import torch

import hyperlora_ext as hl
from hyperlora_ext.plots import error_maps
from hyperlora_ext.problems import kovasznay
from kfac_pinn.pinn.networks import MLP

family, Re40, Re60 = kovasznay(), torch.tensor([40.0]), torch.tensor([60.0])
train = hl.Levenberg(
    {"interior": 300, "boundary": 100}, {"interior": 1000, "boundary": 200}, start=0.25
)
u = hl.pinn(MLP((2, 64, 64, 64, 64, 64, 3)).double(), family.problem(Re40), train, seconds=90)
v = hl.aimed(u, family.problem(Re60), rank=4)  # u is untouched, its tensors are shared
train(v, family.problem(Re60), seconds=5)
print(family.errors(lambda task: v, Re60).summary())
torch.save(hl.state(v), "re60.lora")  # the factors alone, 20 kB
error_maps(family, Re60, {"W0 as it is": u, "LoRA, rank 4": v}).savefig("hyperlora_adapt.png")
