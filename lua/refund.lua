--- refund: give back use of the running period or window, newest source first, never below zero.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       n + 1  operation id; only with ARGV 5
--       then   for every level in h of ARGV 6: the hash and the sorted set of its holds
--       then   with e of ARGV 6: events, outbox and index of the partition
-- ARGV  1..6   as consume
-- RETURNS as consume; not allowed only where no cost name reaches anything
-- WRITES the records that got something back, and the operation id; events, outbox, index
-- @needs base take calendar event grants pool bucket slots policy implied request bill hold ledger partition
--   change record open store op charge
-- @flags allow-oom
local function refund(keys, args)
  if #args ~= 6 then
    bad("refund takes 6 arguments")
  end
  local amount_count = charge.amounts(args[4])
  local count, now, op_key = charge.read(keys, args)
  if not count then
    return now
  end
  local total, code = charge.decide(count, args[3], amount_count, now)
  if total == 0 then
    return charge.answer(count, now, code, false)
  end
  charge.give_back(total, now)
  local answer = charge.answer(count, now, OK, true)
  charge.slices(count, now)
  charge.only_touched(count)
  local note = op_key and charge.note(count, REFUNDED, args[3], args[4])
  return charge.commit(count, now, args, op_key, answer, note) or answer
end
