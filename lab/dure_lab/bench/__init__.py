"""`dure bench`: measurements that print JSON. `round` times an encrypted round over real processes."""
