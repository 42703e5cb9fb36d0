"""Comparisons of methods: the runs that one is made of, what they scored together, and its report."""
