"""What alembic runs for every command; ``runner`` hands it the connection. Not a module to import."""

from alembic import context

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True)
else:
    # One transaction around all revisions of a command: a failed one leaves nothing half done.
    context.configure(connection=context.config.attributes["connection"])

with context.begin_transaction():
    context.run_migrations()
