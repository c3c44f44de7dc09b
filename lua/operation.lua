--- operation: what became of an operation id, or of the hold of that id.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       then   the operation id to look up, and the end of the hold of that id
-- ARGV  1 now       as consume
-- RETURNS a status: 1 replayed, behind it what is stored from its end on (lib/op.lua), 6 unknown
-- WRITES nothing
-- @needs base op
-- @flags no-writes
local function operation(keys, args)
  local total = #keys
  if #args ~= 1 then
    bad("operation takes 1 argument")
  elseif total < 3 or total > 6 then
    bad("keys: one per level of the path (1 to 4), then those of the operation")
  end
  op.check_key(keys[total - 1], "o")
  op.check_key(keys[total], "e")
  local now, values = clock(args[1]), call("MGET", spread(keys))
  for i = 1, total - 2 do
    local rec = values[i]
    now = rec and #rec >= 20 and max(now, (sunpack("<I6", rec, 15))) or now
  end
  local found = op.choose(values[total - 1], values[total], now)
  return found and STATUS_REPLAY .. sub(found.stored, 17) or STATUS_UNKNOWN
end
