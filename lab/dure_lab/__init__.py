"""The bench on top of all roles: demo, benchmarks and simulation."""
