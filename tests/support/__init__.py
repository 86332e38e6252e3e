"""What the tests share: database servers, subprocess and fault-injection helpers. Nothing here is a mock."""
