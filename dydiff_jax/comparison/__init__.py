"""Comparisons of methods: their runs, what these scored, the choice among swept values, and the report."""
