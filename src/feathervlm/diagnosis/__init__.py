"""Where a method keeps tokens on a set of pictures, measured without labels."""
