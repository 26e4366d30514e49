"""One module for each figure; the registry says which files it reads."""
