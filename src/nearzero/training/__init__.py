"""Training: a loop whose state is one integer."""
