--- grant: give a pool credits of their own, with a start, an end and a place in the burn order.
-- KEYS  1 record
--       2 operation id; only with ARGV 10
--       then the records of up to three levels above, read for when they were last seen
--       then   for every level in h of ARGV 11: the hash and the sorted set of its holds
--       then   with e of ARGV 11: events, outbox and index of the partition
-- ARGV  1 now       as consume
--       2 context   as consume; its policy is what an unseen subject gets
--       3 name      the pool
--       4 amount    whole number, 1 to 10^15
--       5 starts    instant in ms as digits; empty or past: now
--       6 expires   instant in ms as digits, after now and after starts; empty: never
--       7 priority  0 to 100; the period's own allowance has 50, lower ones go first
--       8 source    up to 128 bytes, kept with it
--       9 id        1 to 128 bytes
--       10 op       as consume
--       11 extra    as consume
-- RETURNS a status: 1 replayed, 2 need, 3 stale, 4 conflict (also where a grant has that id), 5 done, 7 holds;
--       1 and 5 with the new row of lib/grants.lua as msgpack
-- WRITES the record and the operation id; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op assign
local function grant(keys, args)
  if #args ~= 11 then
    bad("grant takes 11 arguments")
  end
  local name, amount = assign.name(args[3]), assign.whole(args[4], "amount", MAX_AMOUNT)
  local priority = assign.whole(args[7], "priority", 100)
  if amount < 1 or #args[8] > 128 or #args[9] < 1 or #args[9] > 128 then
    bad("an amount from 1, an id of 1 to 128 bytes, a source of up to 128")
  end
  local now, status = assign.read(keys, args[1], args[2], args[11], args[10])
  if not now then
    return status
  end
  local level = levels[1]
  local starts = max(assign.instant(args[5], "starts") or now, now)
  local expires = assign.instant(args[6], "expires") or NEVER
  if expires <= now or expires <= starts then
    bad("expires: an instant after now and after starts")
  end
  local L = level.parsed and level.parsed.names[name]
  if not level.parsed then
    return STATUS_UNKNOWN
  elseif L and L.kind ~= POOL then
    bad("grant: " .. name .. " is no pool")
  end
  local g = {
    id = args[9], pool = name, amount = amount, left = amount, held = 0, lost = 0, starts = min(starts, NEVER),
    expires = min(expires, NEVER), priority = priority, age = now, source = args[8],
  }
  local before = #(level.grants or {})
  status = grants.add(level, g, now)
  if status then
    return status
  elseif #level.grants <= before then
    bill.news(level).list = true -- what made room may have been what kept a pool
  end
  assign.plan_pools(level, now)
  if starts <= now then
    pool.rearm(level, name, now)
  end
  return assign.commit(keys, now, args[1], args[10], GRANTED_CREDITS, grants.row(g))
end
