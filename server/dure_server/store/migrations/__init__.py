"""Alembic migrations, shipped in the package and applied by `dure-server init` and `dure-server upgrade`."""
