"""Each optimizer is a direction and a search; the step loop they share is in `base`."""
