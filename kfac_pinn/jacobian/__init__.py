"""From any closure to its residuals r and their Jacobian J.

losses         what a closure may return: residuals, or outputs with a convex loss
scalar_losses  the residuals behind a scalar loss; squares: the nodes that square something in it
backward       watching calls of backward()
capture        every use of a trained weight, seen by a mode or read off the autograd graph
layers         which parameters act together: a layer, or one other tensor
blocks         the Jacobian of one layer, in factored form, or of one other tensor
dense_rows     the Jacobian of tensors that are no layer's weight
matrix_free    products by autograd, where points are mixed; sampled: factors for K-FAC there
partition      which parameters make a block
assembly       from captured calls to the Jacobian; graph_assembly: from the graphs of residuals
residual_graph one such graph: what reads trained tensors, and whose rows those are
sources        which of the three ways a residual takes
term_jacobian  the Jacobian of one residual term, block by block
linearization  residual and Jacobian: products, rows, Gramian, kernel
check          the Jacobian against autograd's, now and then
closure        the linearisation of a closure
slopes         its loss and gradient alone
objective      its loss at trial steps
"""

from kfac_pinn.jacobian.batches import Batches
from kfac_pinn.jacobian.check import CheckSchedule
from kfac_pinn.jacobian.closure import Linearization, SelfLinearizing, linearize
from kfac_pinn.jacobian.losses import ConvexLoss
from kfac_pinn.jacobian.objective import Objective
from kfac_pinn.jacobian.terms import total_loss

__all__ = [
    "Batches",
    "CheckSchedule",
    "ConvexLoss",
    "Linearization",
    "Objective",
    "SelfLinearizing",
    "linearize",
    "total_loss",
]
