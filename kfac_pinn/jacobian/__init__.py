"""From any closure to its residuals r and their Jacobian J.

losses         what a closure may return: residuals, or outputs with a convex loss
capture        every use of a trained weight while the closure runs
blocks         the Jacobian of one layer, in factored form, or of one other tensor
dense_rows     the Jacobian of tensors that are no layer's weight
assembly       from captured uses to the Jacobian
linearization  residual and Jacobian: products, rows, Gramian, kernel
check          the Jacobian against autograd's, now and then
closure        the linearisation of a closure
"""

from kfac_pinn.jacobian.check import CheckSchedule
from kfac_pinn.jacobian.closure import Linearization, SelfLinearizing, linearize
from kfac_pinn.jacobian.losses import ConvexLoss, total_loss

__all__ = [
    "CheckSchedule",
    "ConvexLoss",
    "Linearization",
    "SelfLinearizing",
    "linearize",
    "total_loss",
]
