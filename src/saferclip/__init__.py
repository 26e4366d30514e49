"""Reference reproduction of SaFeR-CLIP: safe fine-tuning of CLIP by proximity-aware redirection."""

__version__ = "0.1.0"
