"""Variants of what a model was tuned on: the same unsafe meaning in words and pictures that training never showed."""
