"""Looks over a site's home, its machine and its way to the gateway, and says what to do."""
