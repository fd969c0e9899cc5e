"""What ``casemate repl`` is made of: reading cells, showing what they do."""
