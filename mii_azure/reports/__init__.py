"""Reports to look at and to print: one HTML file each, which loads nothing and runs nothing."""
