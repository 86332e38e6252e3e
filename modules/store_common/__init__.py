"""What every store shares: errors, ids, time, the value contract, cursors and tenancy. Imports nothing else of ours."""
