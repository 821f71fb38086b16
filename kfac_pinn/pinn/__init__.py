"""What surrounds an optimizer, to take or to leave.

domains   where points are drawn: boxes, balls, time x space
networks  the usual networks of PINNs, plain modules
problem   a PDE problem as data, and errors against its solution
problems  Poisson, heat, Burgers, Fokker-Planck, inverse heat: one PDE a file
training  the one training loop, with checkpoints that resume exactly
"""
