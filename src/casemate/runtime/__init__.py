"""What the image's own Python runs: the warm interpreter and the default context.

Copied as plain files onto the agent disk and loaded there by path, as a package of a private name;
it imports the standard library and nothing of ours, and runs on CPython 3.9 to 3.14.
"""
