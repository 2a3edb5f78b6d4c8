"""For the tests of applications that use credit_mongo."""
