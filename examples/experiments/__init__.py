"""What the commands share.

recipes     problems and optimizers by name, with the grids that baselines are tuned over
results     experiments, their result files, tables
training    running them: clock, progress bar, checkpoints, processes
figures     curves of results
"""
