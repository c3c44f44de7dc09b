--- keys_point: say which API key an imported secret belongs to.
-- KEYS  1 API key
-- ARGV  1 expected   the bytes that are there; empty: none
--       2 pointer    msgpack {id, owner's segment, ...}; empty: none any more
-- RETURNS a status: 5 done, also where it says so already; 6 unknown, where something else is there
-- WRITES the API key
-- @needs base apikey
-- @flags allow-oom
local function keys_point(keys, args)
  if #keys ~= 1 or #args ~= 2 then
    bad("keys_point takes one key and 2 arguments")
  end
  apikey.check(keys[1])
  local there = call("GET", keys[1]) or ""
  if there == args[2] then
    return STATUS_DONE
  elseif there ~= args[1] then
    return STATUS_UNKNOWN
  end
  if args[2] == "" then
    call("DEL", keys[1])
  else
    call("SET", keys[1], args[2])
  end
  return STATUS_DONE
end
