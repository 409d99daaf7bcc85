"""Acoustic models: a backbone, a CTC head, and a head for self-supervision."""
