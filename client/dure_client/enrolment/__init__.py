"""How a firm joins a consortium and keeps its certificate young."""
