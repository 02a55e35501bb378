"""Ingest on DuckDB: tables of any format and size to the data directory that every later step reads."""
