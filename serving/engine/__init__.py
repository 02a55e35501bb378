"""The engine, from histories to ranked items, without HTTP and Ray."""
