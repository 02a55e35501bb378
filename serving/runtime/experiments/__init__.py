"""Traffic between two bundles, what was shown and clicked, and what came of it."""
