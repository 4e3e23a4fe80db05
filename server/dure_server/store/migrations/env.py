"""Run by Alembic: applies migrations over the connection that `Store.upgrade` opened, in its transaction."""

from alembic import context

from dure_server.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
