"""Why the link refused a firm's agent, for the operator to see."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; nobody was refused for a version before."""
    op.add_column("firms", sa.Column("link_refusal", sa.Text(), nullable=True))
