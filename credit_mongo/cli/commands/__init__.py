"""The commands, a module each; ``credit_mongo.cli`` says how one joins."""
