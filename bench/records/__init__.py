"""Records: one JSON file per cell and stage; the truth that every view is made from."""
