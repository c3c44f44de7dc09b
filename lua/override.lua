--- override: change a limit for one subject, whatever its plans say, for ever or up to an instant.
-- KEYS  1 record
--       2.. the records of up to three levels above, read for when they were last seen
--       then   for every level in h of ARGV 10: the hash and the sorted set of its holds
--       then   with e of ARGV 10: events, outbox and index of the partition
-- ARGV  1 now      as consume
--       2 context  as consume
--       3 name     the limit
--       4 limit    whole number; "none": unlimited; empty: as the plan says
--       5 overage  whole number; "none": no bound; empty: as the plan says
--       6 burst    whole number; empty: as the plan says
--       7 expires  instant in ms as digits; empty: never
--       8 clear    "1": take the override away (4 to 7 empty), else empty
--       9 known    "1": accept a limit that the record's plans do not include; it waits for one that does
--       10 extra   as consume
-- RETURNS a status: 2 need, 3 stale, 5 done, 6 the record has no such limit, 7 holds, 8 due
-- WRITES the record; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op assign
local function override(keys, args)
  if #args ~= 10 then
    bad("override takes 10 arguments")
  end
  local name = assign.name(args[3])
  if args[9] ~= "" and args[9] ~= "1" then
    bad("known: 1 or empty")
  end
  local fields
  if args[8] == "" then
    fields = {}
    fields.l = args[4] ~= "" and assign.whole(args[4], "limit", MAX_AMOUNT, true) or nil
    fields.v = args[5] ~= "" and assign.whole(args[5], "overage", MAX_AMOUNT, true) or nil
    fields.b = args[6] ~= "" and assign.whole(args[6], "burst", MAX_RATE) or nil
    if not (fields.l or fields.v or fields.b) then
      bad("nothing to override")
    end
    fields.e = assign.instant(args[7], "expires")
  elseif args[8] ~= "1" or args[4] .. args[5] .. args[6] .. args[7] ~= "" then
    bad("clear: 1 and nothing else, or empty")
  end
  local now, status = assign.read(keys, args[1], args[2], args[10])
  if not now then
    return status
  end
  local level = levels[1]
  if not fields and (level.fresh or not level.parsed) then
    return STATUS_DONE -- an unseen subject has no override to take away
  end
  if not level.parsed then
    return STATUS_UNKNOWN
  end
  local L = level.parsed.names[name]
  L = L and not L.implied and L or nil -- for grants alone, whatever plans say
  if not L and args[9] ~= "1" and fields then
    return STATUS_UNKNOWN
  end
  if L and fields then
    local fitting = L.kind == POOL and not fields.b or L.kind ~= POOL and L.kind < FLAG and not fields.v
    if not fitting or fields.b and L.kind ~= 4 then
      bad("override: limit and overage are for pools, limit for buckets and slots, burst for token buckets")
    end
    if L.kind ~= POOL and fields.l and (fields.l == NONE or fields.l > MAX_RATE) then
      bad("limit: a whole number up to " .. format("%.0f", MAX_RATE) .. " for a bucket or slots")
    end
  end
  if fields and fields.e and fields.e <= now then
    bad("expires: an instant after now")
  end
  assign.override(level, name, fields, now)
  return assign.commit(keys, now, args[1])
end
