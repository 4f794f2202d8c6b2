"""What a fit finds in a model before it learns: layers, their features, and where these look."""
