"""Embed the quadruples with the frozen model, and mine each unsafe caption's nearest safe one."""
