"""Reading of tables with DuckDB, and the data directory that every later step reads."""
