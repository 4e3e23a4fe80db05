"""The firm's side: agent, trainer, data, policy, ledger and the outbound link."""
