"""The user's model: what it is given, how it is run and watched, and that it is left as found."""
