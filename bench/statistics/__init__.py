"""Numbers about numbers: intervals over seeds, fronts over methods."""
