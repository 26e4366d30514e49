"""Sources of quadruples, brought into one form: embedded world or tables of one's own."""
