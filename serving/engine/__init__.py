"""From histories to ranked items, without HTTP and Ray."""
