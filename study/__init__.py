"""Studies: what we want to know, and what we learnt."""
