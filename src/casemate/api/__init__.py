"""HTTP in front of the house: one folder per API, one table of errors, one way to a principal."""
