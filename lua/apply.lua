--- apply: put a new revision of the catalog in the place of the one it was made from.
-- KEYS  1 catalog
-- ARGV  1 expected   the bytes that are there; empty: none
--       2 catalog    the new bytes
-- RETURNS 1 if put, 0 if somebody else changed it first
-- WRITES the catalog
-- @needs base
local function apply(keys, args)
  if #keys ~= 1 or #args ~= 2 or args[2] == "" then
    bad("apply takes one key, the expected bytes and the new bytes")
  end
  if (call("GET", keys[1]) or "") ~= args[1] then
    return 0
  end
  call("SET", keys[1], args[2])
  return 1
end
