"""Corpora, splits, text and batches of audio."""
