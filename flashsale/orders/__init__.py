"""Orders on their way from the ledger into a SQL database, and as they are read there."""

import logging

logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of itself while it is imported
logging.getLogger("asyncmy").setLevel(logging.ERROR)  # it warns of each primary key that it has a name
