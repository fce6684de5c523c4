"""One study for each claim that docs/ makes: ``python -m studies.NAME``."""
