"""What a command would do, cost and write, said without doing it: --dry_run."""
