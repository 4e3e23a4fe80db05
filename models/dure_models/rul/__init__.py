"""Remaining-useful-life regressor on windows of sensor rows."""
