"""What a sweep says in the end: figures, one static page, a few lines in the terminal."""
