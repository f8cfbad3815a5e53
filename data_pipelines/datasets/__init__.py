"""One TFDS builder a data set; importing this package loads none of them."""
