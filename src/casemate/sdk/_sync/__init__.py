"""The SDK without ``async``: all but ``beside.py`` is generated from ``_async``."""
