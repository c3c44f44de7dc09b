--- reserve: charge as consume does, and remember it as a hold until it is committed, released or expired.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       n + 1  operation id; only with ARGV 5
--       then   for every level in h of ARGV 6: the hash and the sorted set of its holds
--       then   with e of ARGV 6: events, outbox and index of the partition
-- ARGV  1..6 as consume; 6 names every level in h
--       7 hold      id, 1 to 128 bytes
--       8 ttl       ms as digits, up to 366 days
-- RETURNS as consume; 4 conflict also where an open hold has that id
-- WRITES the records that were charged, first seen or moved, the hold of each, and the operation id; events,
--       outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op charge kinds threshold holdcode compile finish quick slow
local function reserve(keys, args)
  if #args ~= 8 then
    bad("reserve takes 8 arguments")
  end
  local made, values, instant = quick.reserve(keys, args)
  if made then
    return made
  end
  local amount_count = charge.amounts(args[4])
  local id, ttl = finish.id(args[7]), finish.ttl(args[8])
  local count, now, op_key = charge.read(keys, args, values, instant)
  if not count then
    return now
  end
  finish.check_pairs(count)
  local total, code = charge.decide(count, args[3], amount_count, now, "take")
  local full, known = finish.full(count, id)
  if known then
    return STATUS_CONFLICT
  end
  if code == OK and full then
    code = RATE_LIMITED
  end
  if code ~= OK then
    local refusal = charge.answer(count, now, code, false)
    return code == USAGE_EXCEEDED and charge.exhaust(count, now, args) or refusal
  end
  charge.apply(total, now, false)
  local answer = charge.answer(count, now, OK, true)
  charge.slices(count, now)
  finish.put(count, id, now + ttl, split_names(args[3]), charge.listed(amount_count), now)
  local note = op_key and charge.note(count, RESERVED, args[3], args[4], total)
  local lacking = charge.commit(count, now, args, op_key, answer, note)
  if lacking then
    return lacking
  end
  quick.prepare(count, args[3])
  return answer
end
