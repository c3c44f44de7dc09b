--- renew: let a hold last until a time to live from now.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       then   for every level in h of ARGV 3: the hash and the sorted set of its holds
--       then   with e of ARGV 3: events, outbox and index of the partition
-- ARGV  1 now       as consume
--       2 context   as consume
--       3 extra     as consume; names every level in h
--       4 hold      its id
--       5 ttl       ms as digits, up to 366 days
-- RETURNS a status: 2 need, 3 stale, 5 done, 6 there is no such hold (any more), 7 holds, 8 due
-- WRITES the holds, and the records where another hold is the first to expire now; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op charge finish
local function renew(keys, args)
  if #args ~= 5 then
    bad("renew takes 5 arguments")
  end
  local ttl = finish.ttl(args[5])
  return finish.change(keys, { args[1], args[2], "", "", "", args[3] }, finish.id(args[4]), function(entry, now)
    entry.expiry = now + ttl
  end)
end
