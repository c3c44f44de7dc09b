"""`python -m meterd` is the `meterd` command."""

from meterd.cli import main

main(prog_name="meterd")
