"""Candidates of a request, scored and put in order."""
