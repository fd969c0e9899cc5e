"""Other people's examples, run in a sandbox and by a plain Jupyter, compared cell by cell: ``docs/corpus.md``."""
