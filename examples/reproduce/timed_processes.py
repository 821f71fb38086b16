"""Seconds and bytes of a step of one of several processes: see benchmark_processes.py.

Started with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as by torchrun; rank 0 prints.
"""

import argparse
import json
import os
import statistics
import time
from itertools import pairwise

import torch
import torch.distributed as dist

from kfac_pinn import KFACPINN, MLP, Processes, poisson_5d, poisson_10d

CASES = {
    "10065": (poisson_5d, (5, 64, 64, 48, 48, 1)),
    "118145": (poisson_10d, (10, 256, 256, 128, 128, 1)),
}
WARM_UP = 4  # steps 1, 2 and 4 check the Jacobian; the next one is the eighth

parser = argparse.ArgumentParser()
parser.add_argument("case", choices=CASES)
parser.add_argument("--points", type=int, default=20_000)
parser.add_argument("--steps", type=int, default=3)
chosen = parser.parse_args()
rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
processes = None
if count > 1:
    dist.init_process_group("gloo")
    processes = Processes()
make, widths = CASES[chosen.case]
problem = make()
inside, boundary = problem.terms
share = {inside: chosen.points * 4 // 5, boundary: chosen.points // 5}
batch = problem.sample(
    torch.Generator().manual_seed(rank),
    {name: total * (rank + 1) // count - total * rank // count for name, total in share.items()},
    dtype=torch.float64,
)
torch.manual_seed(0)
model = MLP(widths).double()
closure = batch.residuals(model)
optimizer = KFACPINN(model.parameters(), products=10, check=False, processes=processes)
seconds, cpu, sent = [], [], []
for _ in range(WARM_UP + chosen.steps):
    wall, before = time.perf_counter(), processes.sent if processes else 0
    spent = time.process_time()
    optimizer.step(closure)
    seconds.append(time.perf_counter() - wall)
    cpu.append(time.process_time() - spent)
    sent.append((processes.sent if processes else 0) - before)

P = sum(p.numel() for p in model.parameters())
layers = list(pairwise(widths))
factors = len(problem.terms) * sum((a + 1) ** 2 + b**2 for a, b in layers)
ring = 2 * (count - 1) / count
inverses = sum((a + 1) ** 2 + b**2 + (a + 1) * b for a, b in layers)
# gradient and ten products; factors and inverses; residuals, of which everybody gets all
formula = 8 * (ring * (11 * P + factors + inverses) + chosen.points * (count - 1) / count)
if rank == 0:
    print(
        json.dumps(
            {
                "seconds": statistics.median(seconds[WARM_UP:]),
                "cpu_seconds": statistics.median(cpu[WARM_UP:]),
                "bytes": int(statistics.median(sent[WARM_UP:])),
                "formula": int(formula),
                "loss": optimizer.stats["loss"],
            }
        )
    )
