"""python -m nearzero."""

from nearzero.cli import main

main()
