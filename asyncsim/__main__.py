"""Run the command line with ``python -m asyncsim``."""

from asyncsim.cli import main

main(prog_name="asyncsim")
