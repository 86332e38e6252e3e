"""The commands of `atlas-storage`, one room per subject; `app` puts them together.

invocation.py     the options that every command takes, the settings they give, the storage they open
output.py         what people see (rich) and what programs read (`--json`)
errors.py         exit codes, and one line for every error
schema.py         init, migrate, current, history
status.py         health, doctor
data.py           import, export, prune, backup
conversations.py  conversations list, conversations show, search
kv.py             kv get, set, delete, list, incr
vectors.py        vectors list, info, search, rebuild, recall
demo.py           demo
"""
