"""The benchmark: a crowd of buyers in processes of its own, a check of what was sold, and comparisons with peers."""
