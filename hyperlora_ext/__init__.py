"""HyperLoRA for PDEs: low-rank adapters and hypernetworks, trained by kfac_pinn's optimizers."""
