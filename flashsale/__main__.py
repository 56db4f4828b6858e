"""`python -m flashsale` is the command line."""

from flashsale.cli import main

main()
