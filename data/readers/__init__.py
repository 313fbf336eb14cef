"""One file a data set, each of which gives rows in one common form."""
