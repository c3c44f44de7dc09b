--- void: take back what is left of a grant.
-- KEYS  1 record
--       2.. the records of up to three levels above, read for when they were last seen
--       then   for every level in h of ARGV 4: the hash and the sorted set of its holds
--       then   with e of ARGV 4: events, outbox and index of the partition
-- ARGV  1 now      as consume
--       2 context  as consume
--       3 id       of the grant
--       4 extra    as consume
-- RETURNS a status: 2 need, 3 stale, 5 done, 6 there is no such grant (any more), 7 holds; behind 5 a double:
--       how much was taken
-- WRITES the record; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op assign
-- @flags allow-oom
local function void(keys, args)
  if #args ~= 4 then
    bad("void takes 4 arguments")
  elseif #args[3] < 1 or #args[3] > 128 then
    bad("void: an id of 1 to 128 bytes")
  end
  local now, status = assign.read(keys, args[1], args[2], args[4])
  if not now then
    return status
  end
  local level = levels[1]
  local taken = level.rec and grants.void(level, args[3])
  if not taken then
    return STATUS_UNKNOWN
  end
  assign.plan_pools(level, now)
  return assign.commit(keys, now, args[1], nil, nil, spack("<d", taken))
end
