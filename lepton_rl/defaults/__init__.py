"""The tuned defaults that ship with the package (JSON files)."""
