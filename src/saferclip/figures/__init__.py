"""Figures and tables: from the files of a run to what a paper would print. Never loads a model."""
