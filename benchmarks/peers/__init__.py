"""Methods that the comparison runs beside ours: from Captum, from packages, and our own."""
