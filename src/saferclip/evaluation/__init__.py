"""From a model and test sets to numbers: one JSON for each benchmark, ranks of every query."""
