"""What is stored: names, rows, users, documents, reads, and the commands that write a batch."""
