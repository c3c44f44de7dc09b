--- tally: say what of a hold is used for good, so that it stays charged when the hold expires.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       then   for every level in h of ARGV 5: the hash and the sorted set of its holds
--       then   with e of ARGV 5: events, outbox and index of the partition
-- ARGV  1 now       as consume
--       2 context   as consume
--       3 costs     names that the hold has
--       4 amounts   as consume: used in all up to now, no more than is held
--       5 extra     as consume; names every level in h
--       6 hold      its id
--       7 ttl       renew the hold too: ms as digits, up to 366 days; empty: it ends when it did
-- RETURNS a status: 2 need, 3 stale, 5 done, 6 there is no such hold (any more), 7 holds, 8 due
-- WRITES the holds, and the records where another hold is the first to expire now; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op charge finish
local function tally(keys, args)
  if #args ~= 7 then
    bad("tally takes 7 arguments")
  end
  local names = split_names(args[3])
  if charge.amounts(args[4]) ~= #names then
    bad("amounts: one per cost name")
  end
  local ttl = args[7] ~= "" and finish.ttl(args[7])
  return finish.change(keys, { args[1], args[2], "", "", "", args[5] }, finish.id(args[6]), function(entry, now)
    for j, name in ipairs(names) do
      local at = finish.index(entry.names, name)
      if not at or amounts[j] > entry.amounts[at] then
        bad("tally: more of " .. name .. " than the hold has")
      end
      entry.tallied[at] = max(entry.tallied[at], amounts[j])
    end
    entry.expiry = ttl and now + ttl or entry.expiry
  end)
end
