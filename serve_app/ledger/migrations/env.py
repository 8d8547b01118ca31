"""Alembic's entry: migrates the connection that `serve_app.ledger.migrate` hands over, in its transaction."""

from alembic import context

from serve_app.ledger.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata)
with context.begin_transaction():
    context.run_migrations()
