"""Studio in a real browser: ``.ci/browser`` runs these tests, with Debian's Chromium."""
