"""How the operator runs a job (quorum, deadlines, when it stops), and which of its published sums are still kept."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Jobs from before are run as usual, and all their sums are there."""
    op.add_column("jobs", sa.Column("operation", sa.JSON(), nullable=False, server_default="{}"))
    op.add_column("jobs", sa.Column("sums_from", sa.Integer(), nullable=False, server_default="0"))
