"""What ``casemate repl`` and ``notebook run --show`` are made of: reading cells, showing what they do."""
