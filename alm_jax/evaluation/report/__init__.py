"""Reports: sections that evaluators make, the pictures in them, and the page that they stand on."""
