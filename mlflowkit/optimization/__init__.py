"""Model optimisation: search spaces, the tournament of candidates, early stopping, Pareto front, selection."""
