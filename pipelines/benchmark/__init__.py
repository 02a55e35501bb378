"""Published protocols, systems tuned alike, one table: `setrec benchmark`."""
