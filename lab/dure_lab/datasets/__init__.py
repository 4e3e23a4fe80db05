"""Data for the bench: real sets read as published and a simulated process, each dealt to firms in one common form."""
