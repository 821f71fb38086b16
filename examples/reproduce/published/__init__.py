"""What the commands share.

recipes     problems and optimizers by name, with the grids and spaces that baselines are tuned in
published   what the published runs reached, with which settings, in about how many steps
results     experiments, their result files, tables
training    running them: clock, progress bar, checkpoints, processes
sweeps      tuning
queue       which results to make in which order
figures     curves of results
pages       tables of results in the docs, beside the published values
studies     what reviewers asked for: spectra, cost, pictures, ablation, a file each
"""
