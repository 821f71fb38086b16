"""How far to go: the second half of every optimizer.

line          lengths along a direction
trust_region  steps whose damping is chosen by the decrease they achieve
geodesic      a step that bends with the residual
"""
