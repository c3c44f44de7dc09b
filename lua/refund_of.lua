--- refund_of: give a whole operation back, once, to where it came from; what of that is over lapses.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       n + 1  operation id; only with ARGV 3
--       then   the operation id to give back, and the end of the hold of that id
--       then   for every level in h of ARGV 4: the hash and the sorted set of its holds
--       then   with e of ARGV 4: events, outbox and index of the partition
-- ARGV  1 now       as consume
--       2 context   as consume
--       3 op        as consume
--       4 extra     as consume's 6
-- RETURNS as consume; 1 replayed also where it was given back before: that answer; besides
--       6 unknown   there is no such operation (any more); or one that cannot be given back, or not on this
--                   path: then its verb (1 byte, see lib/op.lua) and its path below the root
-- WRITES the records that got something back, the operation id, and the operation id, or end of the hold, that is
--       given back; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op charge undo
-- @flags allow-oom
local function refund_of(keys, args)
  if #args ~= 4 then
    bad("refund_of takes 4 arguments")
  end
  local count, now, found, key, own = undo.read(keys, args)
  if not count then
    return now
  end
  local answer = undo.all(count, found, now)
  charge.only_touched(count)
  local manual = args[1] ~= ""
  local marked, marked_ttl = op.marked(found, answer, now, manual)
  local value, ttl
  if own then
    local note = op.note(REFUNDED, found.below, found.names, found.packed, "")
    value, ttl = op.value(args[3], now, answer, manual, note)
  end
  return store.write(count, slices, now, key, marked, marked_ttl, own, value, ttl) or answer
end
