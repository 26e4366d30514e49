"""Fine-tune both encoders of a CLIP through low-rank adapters, and choose learning rates."""
