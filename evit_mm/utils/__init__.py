"""Helpers for files, paths, versions and text. They do not import the other subpackages."""
