"""What alembic runs: the migrations on the connection that it was given."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table="flashsale_migrations")
with context.begin_transaction():
    context.run_migrations()
