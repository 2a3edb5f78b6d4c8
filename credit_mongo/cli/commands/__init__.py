"""The commands, one module each. ``credit_mongo.cli`` says how to write one."""
