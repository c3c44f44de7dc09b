--- adjust: set what was used of a limit in the running period or window to an absolute figure.
-- KEYS  1 record
--       2.. the records of up to three levels above, read for when they were last seen
--       then   for every level in h of ARGV 5: the hash and the sorted set of its holds
--       then   with e of ARGV 5: events, outbox and index of the partition
-- ARGV  1 now      as consume
--       2 context  as consume
--       3 name     the limit
--       4 used     whole number; for a bucket at most its limit or burst
--       5 extra    as consume
-- RETURNS a status: 2 need, 3 stale, 5 done, 6 the record has no such limit, 7 holds, 8 due
-- WRITES the record; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op assign
local function adjust(keys, args)
  if #args ~= 5 then
    bad("adjust takes 5 arguments")
  end
  local name, used = assign.name(args[3]), assign.whole(args[4], "used", MAX_AMOUNT)
  local now, status = assign.read(keys, args[1], args[2], args[5])
  if not now then
    return status
  end
  if not levels[1].parsed or not assign.adjust(levels[1], name, used, now) then
    return STATUS_UNKNOWN
  end
  return assign.commit(keys, now, args[1])
end
