"""Images and labels as numpy arrays. Nothing in here knows torch or Ray."""
