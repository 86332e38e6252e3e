"""The HTTP API, health, metrics and the dashboard (extra `server`); `serving.serve` runs them, `app.create_app` makes them.

    app.py        the application put together
    gate.py       what every request passes before anything else: hosts, sizes, deadlines, headers
    callers.py    who is calling: tokens, scopes, tenants
    problems.py   errors as RFC 9457 problem details
    once.py       Idempotency-Key
    api/          one router for each store
    dashboard/    one file for each page

Routes translate, stores decide: nothing here knows a table or a driver.
"""
