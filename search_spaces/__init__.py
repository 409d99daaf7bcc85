"""What may vary: typed distributions over dotted paths of a trial, and one sweep file per question."""
