"""Firms that left a job or the consortium: their signed statements and the receipts."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table; nobody could leave by a statement before."""
    op.create_table(
        "departures",
        sa.Column("firm", sa.String(63), nullable=False),
        sa.Column("job", sa.String(63), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("identity", sa.String(64), nullable=False),
        sa.Column("statement", sa.LargeBinary(), nullable=False),
        sa.Column("receipt", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["firm"], ["firms.name"], name="fk_departures_firm_firms"),
        sa.PrimaryKeyConstraint("firm", "job", "identity", name="pk_departures"),
    )
