"""Make, fetch and keep the CLIP model that is fine-tuned."""
