"""Training regimes: the ordered stages that a trial runs."""
