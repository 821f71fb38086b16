"""The zoo's command with rivals that its table leaves out: quasi-Newton with a dense inverse.

python examples/reproduce/rivals.py measure --only poisson_2d --hidden 16-16 --seconds 5,10 \
        --folder examples/reproduce/results/rivals
"""

from __future__ import annotations

from zoo import OPTIMIZERS, app

from kfac_pinn import BFGS, SelfScaledBroyden

if __name__ == "__main__":
    # Only in this process: the zoo's own table is that of what is recommended, and of habits
    OPTIMIZERS["SelfScaledBroyden"] = SelfScaledBroyden
    OPTIMIZERS["BFGS"] = lambda parameters: SelfScaledBroyden(parameters, update=BFGS())
    app()
