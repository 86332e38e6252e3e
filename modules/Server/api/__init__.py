"""The routes of the API, one router for each store; `ROOMS` in `modules.Server.app` lists them."""
