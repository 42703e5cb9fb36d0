"""One file per data set; base.py holds every default once."""
