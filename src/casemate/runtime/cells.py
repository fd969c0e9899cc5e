"""The script that the default context runs."""

from _casemate_runtime import context  # type: ignore[import-not-found]

context.main()
