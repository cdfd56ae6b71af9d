"""The version, in one place: pyproject.toml reads it, bundles record it."""

VERSION = "0.1.0"
