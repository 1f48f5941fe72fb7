"""What may be searched: one Python file per study, and the words they are written in."""
