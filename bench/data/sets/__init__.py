"""One file a data set, or a family of them: each has `DATASETS`, name → loader, a function from the data root
(or None) to `RawData`. A file dropped here is found; heavy imports wait until a loader is called."""
