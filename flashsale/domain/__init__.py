"""The values that cross borders: immutable, without I/O, with no behaviour beyond checking themselves."""
