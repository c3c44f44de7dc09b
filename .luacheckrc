-- What a script may see: Lua 5.1 and what the server adds. Everything else is an accidental global,
-- and one of those poisons every later EVAL.
std = "lua51"
read_globals = { "redis", "server", "struct", "cmsgpack", "KEYS", "ARGV" }
max_line_length = 120
