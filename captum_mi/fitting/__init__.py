"""The fit: a walk for moments, the steps, a walk for what is kept, and what it leaves."""
