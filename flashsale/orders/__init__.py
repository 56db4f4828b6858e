"""Orders on their way from the ledger into a SQL database, and as they are read there."""
