"""Files, paths, versions and text: what every room may use; imports nothing above it."""
