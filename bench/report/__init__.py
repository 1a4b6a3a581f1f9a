"""Views made from records: tables, figures, W&B. Each names the records it was made from."""
