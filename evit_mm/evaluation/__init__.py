"""Detection metrics and error analysis."""
