--- keys_create: make an API key.
-- KEYS  1 API key
-- ARGV  1 now      as consume
--       2 sha      SHA-256 of its secret, 32 bytes
--       3 until    instant in ms as digits from which on it is refused; empty: never
--       4 about    msgpack {o = {segment, ...}, j = plan, n = name, m = JSON text, p = prefix, i = SHA-256}
-- RETURNS a status: 4 conflict, where another one has this id; 5 done, also where this one is there already
-- WRITES the API key
-- @needs base apikey
local function keys_create(keys, args)
  if #keys ~= 1 or #args ~= 4 then
    bad("keys_create takes one key and 4 arguments")
  end
  local sha, expires = apikey.digest(args[2]), args[3] ~= "" and apikey.ms(args[3], "until", 15) or NEVER
  local readable, about = pcall(munpack, args[4])
  if not readable or type(about) ~= "table" or type(about.o) ~= "table" then
    bad("about: a msgpack map with an owner")
  end
  local there = apikey.open(keys[1])
  if there then
    return there.sha == sha and not there.revoked and STATUS_DONE or STATUS_CONFLICT
  end
  call("SET", keys[1], apikey.fresh(clock(args[1]), sha, expires, args[4]))
  return STATUS_DONE
end
