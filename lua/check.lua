--- check: the answer that consume would give now.
-- KEYS  1..n   record of each level of the subject, root first (n = 1..4)
--       then   for every level in h of ARGV 6: the hash and the sorted set of its holds
-- ARGV  1..6   as consume; 5 is empty
-- RETURNS as consume, without 1 and 4
-- WRITES nothing
-- @needs base take once calendar event grants pool bucket slots policy implied request bill hold ledger
--   partition change record open store op charge kinds threshold holdcode compile plain
-- @flags no-writes
local function check(keys, args)
  if #args ~= 6 or args[5] ~= "" then
    bad("check takes 6 arguments, the fifth empty")
  end
  local answer, values, instant = plain.answer(CHECK, keys, args)
  if answer then
    return answer
  end
  local amount_count = charge.amounts(args[4])
  local count, now = charge.read(keys, args, values, instant)
  if not count then
    return now
  end
  local total, code = charge.decide(count, args[3], amount_count, now, "take")
  if code == OK then
    charge.guard(total)
  end
  if code == OK or code == RATE_LIMITED then
    plain.prepare(CHECK, count, args[3])
  end
  return charge.answer(count, now, code, code == OK)
end
