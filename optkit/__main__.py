"""``python -m optkit`` is the ``optkit`` command."""

from optkit.cli import main

main()
