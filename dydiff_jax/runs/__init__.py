"""What a run does, and the files it keeps."""
