"""Models in the formats of other libraries, one file per format."""
