"""Request policy: which fields a request may have, in what bounds, and what is set for it. Start at table.py."""
