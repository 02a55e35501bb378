"""The benchmark (`setrec benchmark`): published protocols and systems tuned with equal budgets."""
