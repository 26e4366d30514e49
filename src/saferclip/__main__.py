"""``python -m saferclip``."""

from saferclip.cli import main

main(prog_name="saferclip")
