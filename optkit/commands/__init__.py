"""The commands, one file each. Nothing heavy is imported until a command runs: ``optkit --help`` answers at once."""
