"""The newest statement of each firm on where its ledger ends, countersigned."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Begins empty: firms state their heads at the next occasion."""
    op.create_table(
        "ledger_heads",
        sa.Column("firm", sa.String(length=63), nullable=False),
        sa.Column("countersigned", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["firm"], ["firms.name"], name=op.f("fk_ledger_heads_firm")),
        sa.PrimaryKeyConstraint("firm", name=op.f("pk_ledger_heads")),
    )


def downgrade() -> None:
    """Backups go back further than this."""
    raise NotImplementedError("restore a backup instead")
