"""One function for each table; the registry says which files it reads."""
