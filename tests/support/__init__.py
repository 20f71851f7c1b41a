"""What tests share: real servers as fixtures, and waiting without sleeping."""
