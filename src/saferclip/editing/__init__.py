"""Models whose weights are computed from those of the base model, without training."""
