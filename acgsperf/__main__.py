"""`python -m acgsperf`: the command line."""

from acgsperf.cli import main

main()
