"""Every use of a trained weight during a closure, seen from outside the user's model.

A `TorchFunctionMode` watches the torch functions that the closure calls. Whenever one of them is
linear in a trained weight (`F.linear`, `F.conv1d`, `F.conv2d`), the input z and the place of the
output in the autograd graph are kept; whenever a trained tensor is broadcast over the points, each
point is given a copy of its own. One backward pass of a residual to those places then gives its
whole Jacobian, that of layers in factored form (docs/mathematics.md, "Weight sharing").
"""

from kfac_pinn.jacobian.capture.mode import Broadcast, Capture
from kfac_pinn.jacobian.capture.recorders import LayerCall
from kfac_pinn.jacobian.capture.unsupported import PRECISION

__all__ = ["PRECISION", "Broadcast", "Capture", "LayerCall"]
