"""The API, Swagger UI and a page for people on a TCP port of this machine. Only imported when settings ask for it."""
