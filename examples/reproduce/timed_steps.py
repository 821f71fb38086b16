"""Wall and process seconds of a step, in a process of its own: see benchmark_threads.py.

    OMP_NUM_THREADS=2 python examples/reproduce/timed_steps.py 10065 KFACPINN --steps 6

Runs with older commits too, whose modules stood elsewhere: PYTHONPATH says which.
"""

import argparse
import json
import statistics
import time

import torch

import kfac_pinn
from kfac_pinn import KFACPINN, GaussNewton, KFACStar

try:
    from kfac_pinn.curvature.compression import Sketch
    from kfac_pinn.pinn.networks import MLP
    from kfac_pinn.pinn.problems import poisson_2d, poisson_5d, poisson_10d
except ImportError:  # before the stages were folders
    from kfac_pinn.compression import Sketch
    from kfac_pinn.networks import MLP
    from kfac_pinn.problems import poisson_2d, poisson_5d, poisson_10d

CASES = {
    "1185": (poisson_2d, (2, 32, 32, 1)),
    "9873": (poisson_2d, (2, 64, 64, 48, 48, 1)),
    "10065": (poisson_5d, (5, 64, 64, 48, 48, 1)),
    "118145": (poisson_10d, (10, 256, 256, 128, 128, 1)),
}
OPTIMIZERS = {
    "KFACStar": KFACStar,
    "KFACPINN": lambda parameters: KFACPINN(parameters, products=10),  # so: truncated steps
    "default": KFACPINN,
    "GaussNewton": lambda parameters: GaussNewton(parameters, compression=Sketch(600)),
}
WARM_UP = 8  # steps 1, 2, 4 and 8 check the Jacobian; the next one is the 16th

parser = argparse.ArgumentParser()
parser.add_argument("case", choices=CASES)
parser.add_argument("optimizer", choices=OPTIMIZERS)
parser.add_argument("--steps", type=int, default=7)
chosen = parser.parse_args()
make, widths = CASES[chosen.case]
batch = make().sample(torch.Generator().manual_seed(0), dtype=torch.float64)
torch.manual_seed(0)
model = MLP(widths).double()
closure = batch.residuals(model)
step = OPTIMIZERS[chosen.optimizer](model.parameters()).step
wall, process = [], []
for _ in range(WARM_UP + chosen.steps):
    start = time.perf_counter(), time.process_time()
    step(closure)
    wall.append(time.perf_counter() - start[0])
    process.append(time.process_time() - start[1])
medians = {
    "wall": statistics.median(wall[WARM_UP:]),
    "process": statistics.median(process[WARM_UP:]),
}
print(json.dumps({**medians, "from": kfac_pinn.__file__}))
