"""The import from real database servers of Debian's packages: ``.ci/imports`` runs it."""
