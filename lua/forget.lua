--- forget: remove what is stored of one subject.
-- KEYS  1.. everything to remove: record, meta, holds, operation ids, ends of holds; at most 256
-- ARGV  none
-- RETURNS how many there were
-- WRITES removes the keys
-- @needs base
-- @flags allow-oom
local function forget(keys, args)
  if #keys < 1 or #keys > 256 or #args ~= 0 then
    bad("forget takes 1 to 256 keys and no argument")
  end
  return call("DEL", spread(keys))
end
